import io
import re
import typing

import pandas as pd
import pytest

from fvlm.data.splits import supervised_names
from fvlm.params import SETTINGS, Setting
from fvlm.report import tables

NUMBERS = {key: float(place) + 0.25 for place, key in enumerate(tables.METRIC_KEYS)}


@pytest.fixture
def comparison():
    return tables.comparison(dict.fromkeys(typing.get_args(Setting), NUMBERS))


def test_the_metric_keys_are_the_contracts():
    generalized = {f"generalized_{group}" for group in ("base", "novel", "all")}
    scored = generalized | {"constrained_base", "constrained_novel"}
    scored |= {f"{branch}_{protocol}" for branch in ("detector_only", "vlm_only") for protocol in generalized}
    expected = {f"{name}_{measure}" for name in scored for measure in ("AP50", "AP")} | {"AR100_novel_proposals"}
    assert set(tables.METRIC_KEYS) == expected
    assert len(tables.METRIC_KEYS) == len(expected)


@pytest.mark.parametrize("setting", SETTINGS)
def test_the_words_about_supervision_agree_with_the_splits(setting):
    names = supervised_names(setting)
    assert tables.SUPERVISION[setting].boxes.startswith(str(len(names)))
    assert tables.SUPERVISION[setting].novel_boxed == (len(names) == 65)


def test_the_csv_keeps_every_metric_under_its_key_and_marks_ovod_in_words(comparison):
    table = pd.read_csv(io.StringIO(tables.to_csv(comparison)), index_col="setting")
    for key, value in NUMBERS.items():
        assert (table[key] == value).all()
    assert table["novel classes"].to_dict() == {
        "zsd": "never boxed",
        "ovod": "boxes seen in training",
        "zsd_strict": "never boxed",
    }


def test_the_markdown_pipes_stand_below_each_other_and_ovod_is_marked(comparison):
    text = tables.to_markdown(comparison)
    for block in re.findall(r"(?:^\|.*\n?)+", text, flags=re.MULTILINE):
        lines = block.strip().splitlines()
        places = [[place for place, letter in enumerate(line) if letter == "|"] for line in lines]
        assert len(lines) == 2 + len(SETTINGS)
        assert all(place == places[0] for place in places)
        assert "| ovod (upper bound) | 65, base + novel | boxes seen in training |" in lines[3]
    assert "ovod is an upper bound, not an open-vocabulary result" in text


SEVERAL = tables.over_seeds([{key: value + by for key, value in NUMBERS.items()} for by in (0.0, 1.0, 3.5)])


def test_several_seeds_have_their_mean_and_sample_deviation_and_one_has_neither():
    assert SEVERAL["generalized_novel_AP50"] == NUMBERS["generalized_novel_AP50"], "the first seed's"
    assert SEVERAL["generalized_novel_AP50_mean"] == NUMBERS["generalized_novel_AP50"] + 1.5
    assert SEVERAL["generalized_novel_AP50_std"] == pytest.approx(((1.5**2 + 0.5**2 + 2**2) / (3 - 1)) ** 0.5, abs=1e-6)
    assert SEVERAL["seeds"] == 3
    assert len(SEVERAL) == 3 * len(NUMBERS) + 1
    assert tables.over_seeds([NUMBERS]) == NUMBERS


def test_every_table_of_several_seeds_shows_mean_and_deviation_and_says_of_how_many():
    table = tables.comparison({"zsd": SEVERAL, "ovod": SEVERAL})
    cell = f"{SEVERAL['generalized_novel_AP50_mean']:.1f} ± 1.8"
    assert cell in tables.to_markdown(table)
    assert cell.replace("±", r"$\pm$") in tables.to_latex(table)
    for text in (tables.to_markdown(table), tables.to_latex(table)):
        assert "standard deviation of 3 trainings" in text
    columns = pd.read_csv(io.StringIO(tables.to_csv(table)), index_col="setting").loc["zsd"]
    assert {key: columns[key] for key in SEVERAL} == SEVERAL


def test_one_seed_shows_no_deviation(comparison):
    for text in (tables.to_csv(comparison), tables.to_markdown(comparison), tables.to_latex(comparison)):
        assert "±" not in text and "_std" not in text and "deviation" not in text


def test_no_row_is_called_an_upper_bound_without_ovod():
    table = tables.comparison({"zsd": NUMBERS})
    for render in (tables.to_csv, tables.to_markdown, tables.to_latex):
        assert "upper bound" not in render(table)
        assert "seen in training" not in render(table)


def test_a_number_stands_under_its_own_heading(comparison):
    text = tables.to_markdown(comparison)
    head, _, zsd = (line.split("|") for line in text.splitlines()[2:5])
    column = [cell.strip() for cell in head].index("VLM only: base")
    assert zsd[column].strip() == f"{NUMBERS['vlm_only_generalized_base_AP50']:.1f}"


def test_the_latex_rows_have_as_many_cells_as_the_tabular_has_columns(comparison):
    text = tables.to_latex(comparison)
    floats = re.findall(r"\\begin\{tabular\}\{([lr]+)\}(.*?)\\end\{tabular\}", text, flags=re.DOTALL)
    assert len(floats) == len(tables.SECTIONS)
    for columns, body in floats:
        assert [body.count(rule) for rule in (r"\toprule", r"\midrule", r"\bottomrule")] == [1, 1, 1]
        for row in re.findall(r"^.*\\\\$", body, flags=re.MULTILINE):
            cells = sum(
                int(span.group(1)) if (span := re.search(r"\\multicolumn\{(\d+)\}", cell)) else 1
                for cell in re.split(r"(?<!\\)&", row)
            )
            assert cells == len(columns), row
        spans = re.findall(r"\\cmidrule\(lr\)\{(\d+)-(\d+)\}", body)
        assert int(spans[0][0]) == len(tables.LABELS) + 1
        assert int(spans[-1][1]) == len(columns)
    assert text.count("{") == text.count("}")


def test_latex_special_characters_are_escaped_once(comparison):
    assert r"zsd\_strict & 48 base" in tables.to_latex(comparison)
    assert tables._tex("a\\b_c{50%}") == r"a\textbackslash{}b\_c\{50\%\}"


def test_the_loss_summary_is_the_mean_of_the_last_tenth_of_the_steps():
    curve = pd.DataFrame({name: [9.0] * 18 + [1.0, 3.0] for name in tables.TERMS})
    assert tables.loss_summary({"zsd": curve}).loc["zsd", "RPN box"] == 2.0
    assert tables.loss_summary({"zsd": curve.tail(1)}).loc["zsd", "total"] == 3.0  # shorter than ten steps


def sweep():
    rows = [(0.2, 0.45, 0.06, 0.4), (0.2, 0.65, 0.06, 0.4), (0.2, 0.45, 0.06, 0.5), (0.2, 0.45, 0.01, 0.4)]
    return pd.DataFrame(rows, columns=["alpha", "beta", "vlm_temperature", "nms_iou"])


def test_other_temperatures_and_nms_are_told_at_the_headlines_pair_and_only_where_there_are_some():
    assert tables.held_values(sweep(), 0.2, 0.45).index.tolist() == [0, 2, 3]
    assert tables.held_values(sweep(), 0.2, 0.65).empty
    assert tables.held_values(sweep(), 0.9, 0.9).empty
