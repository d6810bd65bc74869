"""Heatmaps, curves and their grids: every number where it belongs, orientation, scales, marks, bad rows."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from analysis import heatmap
from analysis.bars import bars
from analysis.gridding import distance_grids, joint_grid, mean_grid, robustness_grid
from analysis.grids import Cell, Grid, cell_text, ink
from analysis.stored import StoredResult
from surgeon.errors import AnalysisError
from tests.analysis.rows import DEEP, FINAL, TREATMENTS, joint, robustness, search

NAMES = ("layer1", "layer2", "final_linear", "full model")


def texts(figure: Figure, panel: int = 0) -> list[str]:
    return [text.get_text() for text in figure.axes[panel].texts]


def ticks(axis: Any) -> list[str]:
    return [label.get_text() for label in axis.get_ticklabels()]


def drawn(figure: Figure, panel: int = 0) -> Any:
    axes = figure.axes[panel]
    return axes.collections[0].get_array()


# ------------------------------------------------------------------------------------------------ heatmaps


def test_units_are_rows_and_each_cell_is_its_row() -> None:
    result = robustness()
    figure = heatmap.heatmap(result)
    axes = figure.axes[0]
    assert ticks(axes.yaxis) == list(NAMES) and ticks(axes.xaxis) == list(TREATMENTS)
    expected = [[100 * row["error"] for row in result.rows if row["unit"] == name] for name in NAMES]
    assert np.allclose(drawn(figure), expected)
    assert texts(figure) == [f"{value:.1f}" for line in expected for value in line]
    assert axes.get_ylim()[0] > axes.get_ylim()[1]  # the first unit on top
    assert figure.get_suptitle() == result.title


def test_deep_nets_have_units_as_columns() -> None:
    figure = heatmap.heatmap(robustness(DEEP))
    axes = figure.axes[0]
    assert ticks(axes.xaxis) == [*DEEP, "full model"] and ticks(axes.yaxis) == list(TREATMENTS)
    assert drawn(figure).shape == (6, 55)
    assert len(heatmap.heatmap(robustness(DEEP[:12])).axes[0].get_yticks()) == 13  # twelve stay rows


def test_very_many_units_are_drawn_in_bands() -> None:
    units = [f"unit{i}" for i in range(130)]
    figure = heatmap.heatmap(robustness(units))
    panels = [axes for axes in figure.axes if len(axes.texts)]
    assert [len(axes.get_xticks()) for axes in panels] == [44, 44, 43]
    assert [name for axes in panels for name in ticks(axes.xaxis)] == [*units, "full model"]


def test_the_full_model_and_the_untouched_net_are_last_in_any_order() -> None:
    result = robustness()
    result.rows.reverse()
    grid = robustness_grid(result)
    assert grid.names[-1] == "full model" and grid.treatments[-1] == "final"


def test_verdicts_are_marked_and_explained() -> None:
    result = robustness(notes={"layer2": "identity at initialisation"})
    figure = heatmap.heatmap(result)
    marks = [line.get_marker() for line in figure.axes[0].lines if len(line.get_xdata()) == 1]
    assert sorted(marks) == sorted("^" * 5 + "o" * 10)  # five treatments, nothing on final and full model
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["critical", "undecided", "robust", "* identity at initialisation"]
    assert ticks(figure.axes[0].yaxis)[1] == "layer2 *"
    result.rows = [row | {"verdict": "-", "note": ""} for row in result.rows]
    assert heatmap.heatmap(result).legends == []


def test_detectors_are_drawn_by_precision_and_bright_is_still_bad() -> None:
    error, precision = robustness_grid(robustness()), robustness_grid(robustness(measure="ap"))
    assert precision.label == "average precision, %" and precision.cells["layer1", "0"].value == pytest.approx(20)
    worst, best = ("layer1", "0"), ("final_linear", "final")
    for grid in (error, precision):
        worse, better = (grid.cells[place].value for place in (worst, best))
        assert worse is not None and better is not None
        assert ink(grid.colour(worse)) == "#000000" and ink(grid.colour(better)) == "#ffffff"
    assert "-60.00 points" in precision.cells[worst].words and "+60.00 points" in error.cells[worst].words


def test_small_differences_are_not_drawn_as_large() -> None:
    result = robustness()
    result.rows = [row for row in result.rows if row["unit"] == "final_linear"]
    low, high = robustness_grid(result).limits
    assert (low, high) == pytest.approx((2.0, 12.0))
    result.rows = [row | {"ap": 0.5} | {"error": None} for row in result.rows]
    assert robustness_grid(result).limits == (0.0, 10.0)  # nothing at all was measured


@pytest.mark.parametrize("value", [None, math.nan, math.inf, "many"])
def test_what_was_not_measured_is_a_dash(value: Any) -> None:
    result = robustness()
    result.rows[0]["error"] = value
    del result.rows[1]  # stopped before it
    figure = heatmap.heatmap(result)
    assert texts(figure)[:2] == ["–", "–"] and np.ma.getmaskarray(drawn(figure))[0, :2].all()
    assert robustness_grid(result).cells["layer1", "rerand"].words.startswith("not measured")


@pytest.mark.parametrize("name", ["$x_{$", "a$b", "ünït <b>", "x" * 90])
def test_any_name_can_be_drawn(name: str) -> None:
    for draw in (heatmap.heatmap, heatmap.lines, heatmap.distances):
        figure = draw(robustness((name, "b", "c"), title=name))
        figure.canvas.draw()
    assert len(ticks(heatmap.heatmap(robustness((name,))).axes[0].yaxis)[0]) <= 43


def test_rows_that_cannot_be_drawn_are_refused() -> None:
    for rows, words in (
        ([], "has no row"),
        ([{"unit": "a", "treatment": "0", "loss": 1.0}], "no column 'error' or 'ap' to draw, found unit, treatment"),
        ([{"unit": "a", "error": 1.0}], "no column 'treatment'"),
    ):
        for draw in (heatmap.heatmap, heatmap.lines):
            with pytest.raises(AnalysisError, match=words):
                draw(StoredResult("robustness", "bad", rows))
    with pytest.raises(AnalysisError, match="no column 'group'"):
        heatmap.joint(robustness())


# ------------------------------------------------------------------------------------------ several seeds


def test_the_mean_over_seeds() -> None:
    results = [robustness(seed=seed) for seed in (0, 3, 6)]
    figure = heatmap.heatmap_mean(results)
    values = [100 * (FINAL + 0.6 + seed / 100) for seed in (0, 3, 6)]
    assert drawn(figure)[0, 0] == pytest.approx(np.mean(values))
    assert texts(figure)[:2] == [f"{np.mean(values):.1f}", f"±{np.std(values, ddof=1):.1f}"]
    grid = mean_grid([robustness_grid(result) for result in results])
    assert grid.cells["layer1", "0"].verdict == "critical" and "critical in 3" in grid.cells["layer1", "0"].words
    results[0].rows[0]["verdict"] = "robust"
    grid = mean_grid([robustness_grid(result) for result in results])
    assert grid.cells["layer1", "rerand"].verdict == "differs"
    assert "critical in 2, robust in 1" in grid.cells["layer1", "rerand"].words
    legend = [text.get_text() for text in heatmap.heatmap_mean(results).legends[0].get_texts()]
    assert "differs between seeds" in legend


def test_a_mean_is_over_the_same_units_and_treatments() -> None:
    with pytest.raises(AnalysisError, match="differ in other, third; a mean needs the same units"):
        heatmap.heatmap_mean([robustness(("layer1", "other")), robustness(("layer1", "third"))])
    with pytest.raises(AnalysisError, match="a mean over 1 results"):
        heatmap.heatmap_mean([robustness()])
    with pytest.raises(AnalysisError, match="average precision"):
        heatmap.heatmap_mean([robustness(), robustness(measure="ap")])
    fewer = mean_grid([robustness_grid(robustness()), robustness_grid(robustness(treatments=("0", "final")))])
    assert fewer.treatments == ("0", "final")


# ------------------------------------------------------------------------------------- distances and joint


def test_distances_to_the_initial_weights_else_to_the_trained() -> None:
    grids = distance_grids(robustness())
    assert [grid.label for grid in grids] == [
        "normalised L2 distance to the initial weights, in units of 0.0001",
        "L∞ distance to the initial weights, in units of 0.001",
    ]
    assert grids[0].cells["final_linear", "final"].value == pytest.approx(30)
    assert grids[1].cells["layer1", "0"].value == 0 and "full model" not in grids[0].names
    figure = heatmap.distances(robustness(initial=False))
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert titles[0] == "normalised L2 distance to the trained weights, in units of 0.001" and len(titles) == 2
    result = robustness()
    result.rows = [{key: row[key] for key in ("unit", "treatment", "error")} for row in result.rows]
    with pytest.raises(AnalysisError, match="holds no distance"):
        heatmap.distances(result)


def test_distances_that_are_all_nothing() -> None:
    result = robustness(treatments=("0",))
    for grid in distance_grids(result):
        assert grid.limits == (0.0, 1.0) and grid.colour(0.0) == "#00224e"


def test_groups_say_their_size() -> None:
    figure = heatmap.joint(joint())
    labels = ["all · 3 units, 100%", "every-second · 2 units, 50%", "one · 1 unit, 10%"]
    assert ticks(figure.axes[0].yaxis) == labels
    assert drawn(figure)[1].tolist() == pytest.approx([32.0, 32.0, 2.0])
    assert joint_grid(joint()).cells["all", "0"].verdict == "critical"


# ----------------------------------------------------------------------------------------------- lines


def test_one_line_per_unit_and_none_leads_to_rerand() -> None:
    result = robustness()
    axes = heatmap.lines(result).axes[0]
    assert ticks(axes.xaxis) == list(TREATMENTS)
    lines = {line.get_gid(): line for line in axes.lines if len(line.get_xdata()) > 1}
    assert set(lines) == {f"tip:{name}" for name in NAMES}
    assert list(lines["tip:layer1"].get_xdata()) == [1, 2, 3, 4, 5]
    assert list(lines["tip:layer1"].get_ydata()) == pytest.approx([62, 62, 62, 62, 2])
    alone = [line for line in axes.lines if list(line.get_xdata()) == [0]]
    assert [line.get_gid() for line in alone if line.get_linestyle() == "None"] == [line.get_gid() for line in alone]
    assert len(alone) == 4


def test_of_many_units_the_worst_are_named() -> None:
    result = robustness(DEEP)
    for row in result.rows:
        if row["unit"] in ("stage3.resblk9", "final_linear") and row["treatment"] == "1":
            row["error"] = 0.5
    figure = heatmap.lines(result)
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names[0] == "full model" and names[-1] == "the other 46 units" and len(names) == 10
    assert {"stage0", "stage1.resblk1", "stage3.resblk9", "final_linear"} < set(names)
    worst = heatmap.lines(robustness(DEEP, measure="ap")).legends[0].get_texts()
    assert "stage0" in [text.get_text() for text in worst]  # the lowest precision is the worst


def test_without_checkpoints_the_units_are_the_axis() -> None:
    axes = heatmap.lines(robustness(treatments=("rerand", "final"))).axes[0]
    assert ticks(axes.xaxis) == list(NAMES)
    heights = [float(line.get_ydata()[0]) for line in axes.lines if line.get_gid()]
    assert heights == pytest.approx([62, 3.5, 2.1, 72])
    assert heatmap.lines(robustness(treatments=("rerand",))).axes[0].get_legend() is not None


def test_a_curve_with_its_tolerance() -> None:
    axes = heatmap.curve(search()).axes[0]
    values = {line.get_label(): line for line in axes.lines}
    assert list(values["treatment 0"].get_xdata()) == pytest.approx([10, 20, 30, 40, 50, 60])
    assert list(values["treatment 0"].get_ydata()) == pytest.approx([2, 2.2, 2.8, 3.8, 5.2, 7])
    assert values["untouched"].get_ydata()[0] == pytest.approx(2)
    assert values["tolerance: 2 points"].get_ydata()[0] == pytest.approx(4)
    marks = [line.get_marker() for line in axes.lines if str(line.get_gid()).startswith("tip:")]
    assert marks == ["o"] * 4 + ["^"] * 2
    start = {"step": 0, "added": "", "units_treated": 0, "share_of_params": 0.0, "treatment": "final", "error": FINAL}
    chosen = search()
    chosen.rows = [start | {"difference": 0.0, "verdict": "-"}, *chosen.rows[:3], chosen.rows[3] | {"chosen": True}]
    with_start = {line.get_label(): line for line in heatmap.curve(chosen).axes[0].lines}
    assert list(with_start["treatment 0"].get_xdata()) == pytest.approx([0, 10, 20, 30, 40])
    assert with_start["largest robust set"].get_xdata()[0] == pytest.approx(40) and "treatment final" not in with_start
    lost = {line.get_label(): line for line in heatmap.curve(search("ap")).axes[0].lines}
    assert lost["tolerance: 2 points"].get_ydata()[0] == pytest.approx(78)
    result = search()
    result.settings.clear()
    assert not any("tolerance" in str(line.get_label()) for line in heatmap.curve(result).axes[0].lines)
    with pytest.raises(AnalysisError, match="no column 'share_of_params'"):
        heatmap.curve(robustness())


# ------------------------------------------------------------------------------------------ other kinds


def test_rows_of_any_kind_become_bars() -> None:
    rows = [
        {"attack": "clean", "images": 100, "accuracy": 0.9, "accuracy_low_95": 0.8, "accuracy_high_95": 0.95},
        {"attack": "fgsm", "images": 100, "accuracy": 0.3, "accuracy_low_95": 0.2, "accuracy_high_95": 0.4},
        {"attack": "pgd", "images": 100, "accuracy": None, "accuracy_low_95": None, "accuracy_high_95": None},
    ]
    axes = bars(StoredResult("adversarial", "Attacks", rows)).axes[0]
    assert [bar.get_width() for bar in axes.patches] == [0.9, 0.3] and ticks(axes.yaxis) == ["clean", "fgsm"]
    assert [list(line.get_xdata()) for line in axes.lines] == [[0.8, 0.95], [0.2, 0.4]]
    for nothing in ([], [{"layer": "a"}]):
        with pytest.raises(AnalysisError, match="no column of numbers"):
            bars(StoredResult("x", "Nothing", nothing))
    many = bars(StoredResult("x", "Many", [{"name": f"n{i}", "k": "same", "v": i} for i in range(200)]))
    assert len(many.axes[0].patches) == 80 and "first 80 of 200" in many.axes[0].get_xlabel()


def test_cells_in_short() -> None:
    assert [cell_text(v, True) for v in (9.94, 9.96, -12.3)] == ["9.9", "10", "-12"]
    grid = Grid(("a",), ("0",), {("a", "0"): Cell(5.0)}, "x")
    assert grid.limits == (5.0, 6.0) and not grid.deep and grid.bands() == [("a",)]
