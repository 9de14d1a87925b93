import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle

from fvlm.params import SETTINGS, Setting
from fvlm.report import plots
from fvlm.report.tables import TERMS


def curve(level: float, steps: int = 60) -> pd.DataFrame:
    return pd.DataFrame({"step": range(1, steps + 1), **{term: np.full(steps, level) for term in TERMS}})


def sweep() -> pd.DataFrame:
    """AP50 = 10 * alpha + beta in tenths, so that each cell tells where it belongs."""
    rows = [(alpha, beta, *[100 * alpha + 10 * beta] * 3) for alpha in (0.0, 0.2) for beta in (0.0, 0.45, 1.0)]
    return pd.DataFrame(rows, columns=["alpha", "beta", *plots.SWEPT.values()])


def classes(shift: float = 0.0) -> pd.DataFrame:
    rows = [
        ("zebra", "base", 4, 30.0, 20.0),
        ("tie", "novel", 2, 10.0, 40.0),
        ("cat", "novel", 3, 50.0, 45.0),
        ("bear", "base", 0, np.nan, np.nan),
        ("apple", "base", 9, 70.0, 60.0),
    ]
    table = pd.DataFrame(rows, columns=["name", "group", "val_boxes", "AP50", "detector_only_AP50"])
    table["AP50"] += shift
    return table


def test_every_group_and_setting_has_a_colour_of_its_own():
    assert set(plots.COLOURS) == {"base", "novel", *SETTINGS}
    assert len(set(plots.COLOURS.values())) == len(plots.COLOURS)


def test_every_loss_has_axes_with_all_settings_raw_and_smoothed():
    figure = plots.losses({"zsd": curve(1.0), "ovod": curve(2.0)})
    assert len(figure.axes) == len(TERMS)
    for axes in figure.axes:
        smooth = {line.get_color(): line for line in axes.lines if line.get_linewidth() > 1}
        assert len(axes.lines) == 4
        np.testing.assert_allclose(np.asarray(smooth[plots.COLOURS["zsd"]].get_ydata()), 1.0)
        np.testing.assert_allclose(np.asarray(smooth[plots.COLOURS["ovod"]].get_ydata()), 2.0)
        assert axes.get_ylabel()
        assert axes.get_ylim()[0] == 0
    assert len(figure.legends) == 1


def test_the_smoothed_line_follows_slower_than_the_raw_one():
    falling = curve(1.0)
    falling.loc[30:, "loss"] = 0.0
    axes = plots.losses({"zsd": falling}).axes[0]
    smooth = next(line for line in axes.lines if line.get_linewidth() > 1).get_ydata()
    assert 0.1 < np.asarray(smooth)[31] < 0.9


def test_the_span_of_smoothing_is_at_least_one_step():
    assert [plots.smoothing_span(steps) for steps in (1, 300, 9000)] == [1, 10, 300]


def test_every_cell_of_the_sweep_shows_its_own_number():
    figure = plots.fusion_sweep({"zsd": sweep()}, alpha=0.2, beta=0.45)
    assert len(figure.axes) == 3
    axes = figure.axes[0]
    columns = [tick.get_text() for tick in axes.get_xticklabels()]
    rows = [tick.get_text() for tick in axes.get_yticklabels()]
    assert (rows, columns) == (["0", "0.2"], ["0", "0.45", "1"])
    for text in axes.texts:
        column, row = (int(place) for place in text.get_position())
        assert float(text.get_text()) == pytest.approx(np.asarray(axes.images[0].get_array())[row, column], abs=0.05)
        assert float(text.get_text()) == pytest.approx(100 * float(rows[row]) + 10 * float(columns[column]), abs=0.05)


def frames(figure) -> set[tuple[float, float]]:
    return {patch.get_xy() for axes in figure.axes for patch in axes.patches if isinstance(patch, Rectangle)}


def test_the_cell_of_the_headline_is_framed_and_only_if_it_is_on_the_grid():
    assert frames(plots.fusion_sweep({"zsd": sweep()}, alpha=0.2, beta=0.45)) == {(0.5, 0.5)}
    assert frames(plots.fusion_sweep({"zsd": sweep()}, alpha=0.2, beta=0.5)) == set()


def texts(figure) -> str:
    return " ".join(text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text")))


def test_of_a_sweep_over_more_the_headlines_slice_is_drawn():
    others = [{"vlm_temperature": t, "nms_iou": n} for t, n in ((0.05, 0.5), (0.05, 0.4), (0.01, 0.5))]
    table = pd.concat([sweep().assign(**other) for other in others], ignore_index=True)
    drawn = plots.at_headline(table)
    pd.testing.assert_frame_equal(drawn, sweep().assign(**others[0]))
    plots.fusion_sweep({"zsd": drawn}, alpha=0.2, beta=0.45)


def test_the_sweep_says_that_choosing_by_it_is_tuning_and_that_beta_is_idle_under_ovod():
    zsd = texts(plots.fusion_sweep({"zsd": sweep()}, alpha=0.2, beta=0.45))
    assert "tuning on the test split" in zsd
    assert "beta changes nothing" not in zsd
    assert "beta changes nothing" in texts(plots.fusion_sweep({"ovod": sweep()}, alpha=0.2, beta=0.45))


def lengths(axes) -> list[float]:
    return [bar.get_width() for bar in axes.patches]


def test_classes_are_sorted_within_novel_and_base_by_the_chosen_setting():
    tables: dict[Setting, pd.DataFrame] = {
        "zsd": classes(),
        "ovod": classes(shift=5.0).iloc[::-1],
    }  # another order of rows must not matter
    figure = plots.per_class(tables, order_by="zsd")
    novel_zsd, novel_ovod, base_zsd, _ = figure.axes
    assert [label.get_text() for label in novel_zsd.get_yticklabels()] == ["cat  (3)", "tie  (2)"]
    assert [label.get_text() for label in base_zsd.get_yticklabels()] == ["apple  (9)", "zebra  (4)", "bear  (0)"]
    assert lengths(novel_zsd) == [50.0, 10.0]
    assert lengths(novel_ovod) == [55.0, 15.0]
    assert np.asarray(novel_zsd.lines[0].get_xdata()).tolist() == [45.0, 40.0]  # the rings: detector only
    assert novel_zsd.get_ylim()[0] > novel_zsd.get_ylim()[1], "the best class stands on top"


def test_base_and_novel_bars_have_their_colours_and_a_class_without_boxes_says_so():
    figure = plots.per_class({"zsd": classes()}, order_by="zsd")
    novel, base = figure.axes
    assert {to_hex(bar.get_facecolor()).upper() for bar in novel.patches} == {plots.COLOURS["novel"]}
    assert {to_hex(bar.get_facecolor()).upper() for bar in base.patches} == {plots.COLOURS["base"]}
    assert [(text.get_text(), text.get_position()[1]) for text in base.texts] == [("no box in val", 2)]


def test_the_column_of_ovod_is_called_an_upper_bound():
    assert "upper bound" in texts(plots.per_class({"ovod": classes()}, order_by="ovod"))
    assert "upper bound" not in texts(plots.per_class({"zsd": classes()}, order_by="zsd"))


def test_equal_figures_give_equal_png_bytes():
    first, second = (plots.to_png(plots.losses({"zsd": curve(1.0)})) for _ in range(2))
    assert first.startswith(b"\x89PNG")
    assert first == second
    assert b"matplotlib" not in first.lower()


def test_a_line_of_precision_is_drawn_for_each_setting_and_says_its_ap50():
    rows = [
        {"name": "mean", "group": group, "recall": place / 100, "precision": 0.5}
        for group in ("novel", "base", "all")
        for place in range(101)
    ]
    figure = plots.precision_recall({"zsd": pd.DataFrame(rows), "ovod": pd.DataFrame(rows[:202])})
    novel, base, every = figure.axes
    assert [len(axes.lines) for axes in (novel, base, every)] == [2, 2, 1]
    assert novel.get_legend_handles_labels()[1] == ["zsd: AP50 50.0", "ovod: AP50 50.0"]
    assert set(np.asarray(novel.lines[0].get_ydata())) == {50}


def test_the_gain_of_every_kind_of_error_is_a_bar_and_the_detectors_a_ring():
    rows = [
        {"scores": scores, "group": group, "error": kind, "gain": gain}
        for scores, gain in (("fused", 4.0), ("detector only", 7.0))
        for group in ("novel", "base", "all")
        for kind in ("background", "missed")
    ]
    figure = plots.errors({"zsd": pd.DataFrame(rows)})
    for axes in figure.axes:
        assert [bar.get_width() for bar in axes.patches if isinstance(bar, Rectangle)] == [4, 4]
        assert list(np.asarray(axes.lines[0].get_xdata())) == [7, 7]
    left = figure.axes[0].get_yticklabels()  # they serve both panels
    assert [label.get_text() for label in left] == ["background", "missed"]
