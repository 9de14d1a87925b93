import pandas as pd
import pytest

from fvlm.report import published, tables
from fvlm.report.published import ABSENT, COLUMNS, DERIVED, READ, RECALLED

BASE, NOVEL, ALL = COLUMNS[2:]
COCO = {"dataset": "coco2017", "val": {"image_count": 5000}}
OPENAI = {"weights": "openai", "architecture": "RN50", "provenance": {}}
COUNTS = pd.DataFrame({"subset": ["train_zsd", "val_generalized"], "images": [107761, 4836]})


def comparison(*settings):
    return tables.comparison({setting: dict.fromkeys(tables.METRIC_KEYS, 27.5) for setting in settings})


def test_every_number_has_a_mark_and_every_number_read_has_a_source():
    for row in published.published().to_dict("records"):
        assert len(row["marks"]) == len(COLUMNS)
        for column, mark in zip(COLUMNS, row["marks"], strict=True):
            assert mark in (READ, DERIVED, RECALLED, ABSENT)
            assert pd.isna(row[column]) == (mark == ABSENT), row
            assert pd.isna(row[column]) or 0 <= row[column] <= 100
        assert row["source"] or set(row["marks"]) <= {RECALLED, ABSENT}, row


def test_all_is_the_weighted_mean_of_base_and_novel_or_the_row_is_marked():
    seen = set()
    for row in published.published().to_dict("records"):
        if pd.isna([row[BASE], row[NOVEL], row[ALL]]).any():
            assert row["adds_up"] == ""
            continue
        difference = (48 * row[BASE] + 17 * row[NOVEL]) / 65 - row[ALL]
        assert row["adds_up"] == ("yes" if abs(difference) <= published.ROUNDING + 1e-9 else "no"), row
        if DERIVED in row["marks"]:
            assert row["marks"][2:] == "DSS"
            assert row[BASE] == pytest.approx((65 * row[ALL] - 17 * row[NOVEL]) / 48, abs=0.051)
        seen.add(row["adds_up"])
    assert seen == {"yes", "no"}


def test_the_papers_own_numbers_are_in_the_table():
    (row,) = [r for r in published.published().to_dict("records") if r["method"] == "F-VLM"]
    assert (row["backbone"], row[BASE], row[NOVEL], row[ALL]) == ("CLIP R50", 43.7, 28.0, 39.6)
    assert row["marks"] == "--DSS"


def test_recalled_numbers_are_blank_and_rows_of_them_alone_are_left_out():
    shown = published.without_recalled(published.published())
    assert RECALLED not in "".join(shown["marks"])
    assert "WSDDN" not in set(shown["method"])
    ovr = shown[shown["method"] == "OVR-CNN"].iloc[0]
    assert pd.isna(ovr["constrained_novel_AP50"])
    assert ovr[NOVEL] == 22.8


@pytest.mark.parametrize(
    ("manifest", "card", "counts", "expected"),
    [
        (COCO, OPENAI, COUNTS, True),
        (COCO, {**OPENAI, "weights": "x.pt", "provenance": {"weights": {"is_openais_archive": True}}}, COUNTS, True),
        ({**COCO, "dataset": "emoji"}, OPENAI, COUNTS, False),
        ({**COCO, "dataset": "coco_folder"}, OPENAI, COUNTS, False),
        ({**COCO, "val": {"image_count": 400}}, OPENAI, COUNTS, False),
        (COCO, {**OPENAI, "weights": "pretrain"}, COUNTS, False),
        (COCO, {**OPENAI, "weights": "laion2b"}, COUNTS, False),
        (COCO, OPENAI, COUNTS.assign(images=[107761, 4000]), False),
        (COCO, OPENAI, COUNTS.iloc[:1], False),
    ],
)
def test_only_the_whole_of_cocos_val_set_with_openais_clip_is_compared(manifest, card, counts, expected):
    assert published.belongs(manifest, card, counts) is expected


def test_ours_stand_by_novel_ap_and_a_setting_that_saw_novel_boxes_does_not():
    table = published.among(comparison("zsd", "ovod"), "RN50")
    ours = table[table["ours"]]
    assert ours["method"].tolist() == ["fvlm, zsd"]
    place = ours.index[0]
    assert table.loc[place - 1, NOVEL] <= 27.5 <= table.loc[place + 1, NOVEL]
    assert published.among(comparison("ovod"), "RN50")["ours"].sum() == 0
