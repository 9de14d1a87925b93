import re
from html.parser import HTMLParser

import pandas as pd
import pytest
from PIL import Image

from fvlm.evaluation.errors import KINDS
from fvlm.report import page, published, tables
from fvlm.report.gallery import Exhibit, Mark, Panel

RECORD = {
    "freeze": "all",
    "steps": 20,
    "seconds": 3.5,
    "images": 160,
    "images_per_s": 45.7,
    "trained_parameters": 1_203_841,
    "frozen_parameters": 5,
    "tower_sha256_before": "aa",
    "tower_sha256_after": "aa",
    "vlm_sha256": "bb",
    "inputs": {"train_split": "cc"},
    "git_commit": None,
    "versions": {"torch": "2.13.0"},
    "params": {"model": {"freeze": "all"}, "train": {"seed": 0}},
}


SETTINGS = ("zsd", "ovod")
HOSTILE = "<b>cat"  # a name that must be escaped wherever it stands
GROUPS = ("novel", "base", "all")
AP50S = {f"generalized_{group}_AP50": 31.0 for group in GROUPS}


def exhibit(image_id=4711, kind="best") -> Exhibit:
    mark = Mark(HOSTILE, "novel", f"{HOSTILE} 0.90", True, (1.0, 2.0, 30.0, 40.0), (1.0, 2.0, 60.0, 20.0))
    panels = [Panel(title, [mark], f"1 {HOSTILE}") for title in ("ground truth", "fused", "detector only")]
    return Exhibit(image_id, kind, 0.5, Image.new("RGB", (8, 6)), (448, 336), panels)


def error_rows(gain=2.5):
    return [
        {"scores": scores, "group": group, "error": kind, "count": 12345, "AP50": 30.0, "gain": gain}
        for scores in ("fused", "detector only")
        for group in GROUPS
        for kind in KINDS
    ]


def curve_rows():
    return [
        {"name": name, "group": group, "recall": place / 100, "precision": 0.25}
        for name, group in ((HOSTILE, "novel"), ("dog", "base"), ("mean", "all"))
        for place in range(101)
    ]


def content(**changes) -> page.Content:
    parts = {
        "setting": "zsd",
        "comparison": tables.comparison({s: dict.fromkeys(tables.METRIC_KEYS, 12.34) for s in ("zsd", "ovod")}),
        "curves": {s: pd.DataFrame({term: [1.0, 0.5] for term in tables.TERMS}) for s in ("zsd", "ovod")},
        "losses_png": b"losses",
        "fusion_sweep_png": b"sweep",
        "per_class_png": b"classes",
        "sweeps": {s: pd.DataFrame([{"alpha": 0.2, "beta": 0.45, **AP50S}]) for s in SETTINGS},
        "precision_recall": {s: pd.DataFrame(curve_rows()) for s in SETTINGS},
        "precision_recall_png": b"curves",
        "errors": {s: pd.DataFrame(error_rows()) for s in SETTINGS},
        "errors_png": b"errors",
        "exhibits": [exhibit()],
        "counts": pd.DataFrame({"subset": ["train_full"], "images": [118287]}),
        "manifest": {"dataset": "emoji", "val": {"images": "val2017"}},
        "vlm_card": {"architecture": "miniature", "weights": "random", "pretraining": None, "logit_scale": 17.25},
        "train_records": {"zsd": RECORD, "ovod": RECORD},
        "evaluate": {"alpha": 0.2, "beta": 0.45},
        "report": {"score_threshold": 0.3},
        "ablations": [],
        "input_hashes": {"metrics/zsd.json": "dd" * 32},
    }
    return page.Content(**{**parts, **changes})


class Page(HTMLParser):
    """Tags with their attributes, the tags that are open, and the text."""

    VOID = frozenset({"meta", "link", "img", "br"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(html)
        self.text = re.sub(" +", " ", self.text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):  # of SVG, which closes its elements so
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += re.sub(r"[ \n]+", " ", data.strip(" \n") + " ")

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def parsed() -> Page:
    return Page(page.render(content()))


def test_the_page_needs_no_other_file_and_no_network(parsed):
    assert [script.get("src") for script in parsed.of("script")] == [None, None]
    for tag, attributes in parsed.tags:
        for name in ("src", "href", "srcset", "poster", "data"):
            if name in attributes:
                assert attributes[name].startswith(("data:", "#")), (tag, attributes)
    html = page.render(content())
    assert "@import" not in html
    assert "url(" not in html
    assert "default-src 'none'" in html


def test_every_tag_is_closed_and_every_link_leads_to_a_section(parsed):
    assert parsed.open == []
    ids = [attributes["id"] for _, attributes in parsed.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for attributes in parsed.of("a"):
        assert attributes["href"].removeprefix("#") in ids
    for _, attributes in parsed.tags:
        assert attributes.get("aria-labelledby", ids[0]) in ids


def test_every_picture_has_an_alternative_text_and_every_table_scrolls(parsed):
    assert len(parsed.of("img")) == 5
    assert all(attributes["alt"] for attributes in parsed.of("img"))
    assert len(parsed.of("svg")) == 3 + 1
    assert all(attributes["aria-label"] for attributes in parsed.of("svg"))
    regions = [attributes for attributes in parsed.of("div") if attributes.get("class") == "scroll"]
    assert len(regions) >= len(parsed.of("table")) + 5
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in parsed.of("meta")


def test_ovod_is_marked_in_words_wherever_it_is_compared(parsed):
    assert parsed.text.count("ovod (upper bound)") == len(tables.SECTIONS)
    assert "ovod is an upper bound, not an open-vocabulary result" in parsed.text
    assert parsed.text.count("boxes seen in training") >= len(tables.SECTIONS)


def test_a_page_headed_by_ovod_warns_beside_the_headline():
    html = page.render(content(setting="ovod"))
    assert html.index('<p class="warning"><strong>ovod is an upper bound') < html.index('class="tiles"')


def test_values_are_escaped():
    html = page.render(content(vlm_card={**content().vlm_card, "note": "<script>alert(1)</script>"}))
    assert "<script>alert" not in html
    assert "&lt;script&gt;" in html
    assert "<b>cat" not in html
    assert "&lt;b&gt;cat 0.90" in html
    assert '"\\u003cb\\u003ecat"' in html  # in the data of the script


def test_numbers_hashes_and_versions_can_be_traced(parsed):
    for text in ("12.3", "dd" * 32, "2.13.0", "118\N{THIN SPACE}287", "1\N{THIN SPACE}203\N{THIN SPACE}841", "17.25"):
        assert text in parsed.text
    assert "Twemoji" in parsed.text


def test_real_pictures_are_not_credited_to_twemoji():
    assert "Twemoji" not in page.render(content(manifest={"dataset": "coco_folder", "val": {}}))


def test_the_held_out_accuracy_of_a_pretrained_vlm_is_told():
    pretraining = {"held_out_pictures": 2048, "held_out_accuracy": 0.9142, "chance": 0.0123}
    html = page.render(content(vlm_card={**content().vlm_card, "pretraining": pretraining}))
    assert "91.4" in html
    assert "1.2 %" in html


def test_a_page_without_pictures_says_why():
    assert "report.pictures is 0" in page.render(content(exhibits=[]))


@pytest.mark.parametrize(
    ("after", "freeze", "sound", "words"),
    [
        ("aa", "all", True, "equal"),
        ("ee", "all", False, "DIFFERENT"),
        ("ee", "norm_eval", True, "as model.freeze: norm_eval allows"),
    ],
)
def test_the_towers_hashes_are_judged_by_what_freeze_promises(after, freeze, sound, words):
    record = {**RECORD, "tower_sha256_after": after, "freeze": freeze}
    assert page.tower_verdict(record)[0] is sound
    assert words in page.render(content(train_records={"zsd": record, "ovod": record}))


def test_params_that_differ_between_settings_are_shown_for_each():
    other = {**RECORD, "params": {"model": {"freeze": "all"}, "train": {"seed": 5}}}
    text = Page(page.render(content(train_records={"zsd": RECORD, "ovod": other}))).text
    assert re.search("train.seed +zsd: 0; ovod: 5", text)
    assert re.search("model.freeze +all", text)


def variants(*rows):
    return pd.DataFrame(
        [{"variant": name, "differs": differs, "source": "s", **ap50s} for name, differs, ap50s in rows]
    )


def test_other_protocols_are_shown_with_their_difference_from_the_headline():
    table = variants(
        ("headline", float("nan"), AP50S), ("ovdet", "all pictures", {**AP50S, "generalized_novel_AP50": 28.75})
    )
    text = Page(page.render(content(variants={"zsd": table, "ovod": table}))).text
    assert "The same model under other people's protocols" in text
    assert text.count("28.8 -2.2") == 2
    assert text.count("31.0 +0.0") == 4
    assert " nan " not in text
    assert "other people's protocols" not in Page(page.render(content())).text


def test_an_emoji_run_is_never_shown_beside_coco_numbers(parsed):
    names = set(published.published()["method"]) - {"PL", "SB", "LAB"}
    assert not [name for name in names if name in parsed.text.replace("F-VLM, open-vocabulary detection", "")]
    assert "mong published numbers" not in parsed.text


def test_a_coco_run_with_openais_clip_is_shown_among_the_published_numbers():
    coco = {
        "manifest": {"dataset": "coco2017", "val": {"image_count": 5000}},
        "vlm_card": {"architecture": "RN50", "weights": "openai", "pretraining": None},
        "counts": pd.DataFrame({"subset": ["val_generalized"], "images": [4836]}),
    }
    html = page.render(content(**coco))
    text = Page(html).text
    assert html.count('class="ours"') == 1
    assert "fvlm, zsd" in text
    assert "fvlm, ovod" not in text
    assert "ovod is left out" in text
    assert "43.7 \N{DAGGER}" in text
    assert "WSDDN" not in text
    assert text.count("\N{NOT EQUAL TO}") > 1
    for other in (
        {"dataset": "emoji", "val": {"image_count": 5000}},
        {"dataset": "coco2017", "val": {"image_count": 9}},
    ):
        assert 'class="ours"' not in page.render(content(**{**coco, "manifest": other}))


def test_errors_and_their_gains_are_shown_for_every_kind_and_setting(parsed):
    assert parsed.text.count("+2.5 12\N{THIN SPACE}345") == len(KINDS) * len(GROUPS) * 2 * len(SETTINGS)
    assert set(page.KIND_WORDS) == set(KINDS)


def test_other_temperatures_and_nms_are_told_beside_the_headlines():
    held = [{"alpha": 0.2, "beta": 0.45, "vlm_temperature": t, "nms_iou": 0.5, **AP50S} for t in (0.0625, 0.01)]
    text = Page(page.render(content(sweeps={"zsd": pd.DataFrame(held)}))).text
    assert "0.0625 0.5 31.0" in text
    assert "zsd: other VLM temperatures" in text
    assert "other VLM temperatures" not in Page(page.render(content())).text


def test_the_sections_stand_in_the_order_in_which_they_are_named():
    html = page.render(content())
    assert re.findall('<h2 id="([a-z]+)">', html) == [
        name for name, _, _ in page.SECTIONS if name not in ("published", "protocols", "ablations")
    ]


def test_equal_content_gives_equal_text():
    assert page.render(content()) == page.render(content())
