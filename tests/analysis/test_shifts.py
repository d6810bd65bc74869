"""Shift sparsity: counted as in the paper's Table 2, drawn as in its Fig. 5, and what removing shifts does."""

import copy
import csv
import json
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

import analysis
import surgeon
from surgeon.ops.offsets import remove_shifts
from surgeon.ops.shift_layer import SparseShift2d
from tests.contracts import Snapshot, images, run

TABLE_2 = {  # ShiftResNet-20 on CIFAR10: channels, unshifted channels
    "block1_1": (96, 93),
    "block1_2": (96, 87),
    "block1_3": (96, 94),
    "block2_1": (96, 96),
    "block2_2": (192, 161),
    "block2_3": (192, 181),
    "block3_1": (192, 190),
    "block3_2": (384, 331),
    "block3_3": (384, 382),
}


def layer_with(channels: int, unshifted: int) -> SparseShift2d:
    """Offsets that round to zero, but are not zero, in the first channels; one tap and another in the rest."""
    layer = SparseShift2d(channels, init="zeros")
    with torch.no_grad():
        layer.offset[0, :unshifted] = 0.49
        layer.offset[1, :unshifted] = -0.3
        layer.offset[0, unshifted:] = 1.2
        layer.offset[1, unshifted + 1 :] = -0.5
    return layer


@pytest.fixture
def net() -> nn.Sequential:
    model = nn.Sequential()
    for name, sizes in TABLE_2.items():
        model.add_module(name, layer_with(*sizes))
    return model


def test_the_table_of_the_paper(net: nn.Sequential) -> None:
    found = analysis.shift_sparsity(net)
    assert (found.unshifted, found.channels) == (1615, 1728)
    assert "1615 of 1728 channels in 9 layers do not move: 93.5%" in str(found)
    assert {row["layer"]: (row["channels"], row["unshifted"]) for row in found.rows} == TABLE_2
    shares = [f"{row['sparsity']:.1%}" for row in found.rows]
    assert shares == ["96.9%", "90.6%", "97.9%", "100.0%", "83.9%", "94.3%", "99.0%", "86.2%", "99.5%"]
    assert found.patterns["block1_1"] == {(0, 0): 93, (1, 0): 1, (1, -1): 2}
    with torch.no_grad():
        net.block2_1.offset[1, 5] = 0.5  # half away from zero: one channel more moves
    assert analysis.shift_sparsity(net).unshifted == 1614


def test_grouped_shift_leaves_a_ninth() -> None:
    found = analysis.shift_sparsity(nn.Sequential(SparseShift2d(90, "grouped"), SparseShift2d(45, "active")))
    assert found.sparsity == pytest.approx(1 / 9) and [row["mode"] for row in found.rows] == ["grouped", "active"]


def test_it_reads_rewritten_models_and_changes_nothing() -> None:
    model = surgeon.create_model("test_resnet", "shift").train()
    before = Snapshot.of(model)
    found = analysis.shift_sparsity(model)
    assert before.differences(Snapshot.of(model)) == []
    assert [row["layer"] for row in found.rows] == [c.path for c in surgeon.record(model).changes]
    assert found.channels == sum(m.in_channels for m in model.modules() if hasattr(m, "sparsity"))


def test_a_model_without_shifts_is_explained() -> None:
    with pytest.raises(analysis.AnalysisError, match=r"ResNet has no shift layer; rewrite it with surgeon\.apply"):
        analysis.shift_sparsity(timm.create_model("test_resnet"))


def test_rows_as_json_and_csv(net: nn.Sequential, tmp_path: Path) -> None:
    found = analysis.shift_sparsity(net)
    assert json.loads(found.to_json(tmp_path / "a.json"))["rows"] == found.rows
    assert json.loads((tmp_path / "a.json").read_text())["title"] == "Shift sparsity"
    found.to_csv(tmp_path / "a.csv")
    read = list(csv.DictReader((tmp_path / "a.csv").read_text().splitlines()))
    assert [int(row["unshifted"]) for row in read] == [unshifted for _, unshifted in TABLE_2.values()]


def test_the_area_of_a_bubble_is_its_share_of_channels(net: nn.Sequential) -> None:
    found = analysis.shift_sparsity(net)
    (axis,) = found.figure("block2_2").axes
    areas = {tuple(c.get_offsets()[0].tolist()): float(c.get_sizes()[0]) for c in axis.collections}
    assert set(areas) == {(0, 0), (0, 1), (-1, 1)}  # x is horizontal
    assert areas[0, 0] / areas[-1, 1] == pytest.approx(161 / 30)
    assert axis.get_ylim()[0] > axis.get_ylim()[1]  # down in the image is down
    assert sum(axis.get_visible() for axis in found.figure().axes) == 9
    with pytest.raises(analysis.AnalysisError, match="'block9' is no shift layer"):
        found.figure(["block1_1", "block9"])
    with pytest.raises(analysis.AnalysisError, match="no layer was named"):
        found.figure([])


def test_the_report_is_one_file(net: nn.Sequential, tmp_path: Path) -> None:
    net.add_module("a<b", SparseShift2d(3))
    text = analysis.shift_sparsity(net).report(tmp_path / "report.html").read_text()
    assert "data:image/png;base64," in text and "a&lt;b" in text and "a<b" not in text
    assert "http" not in text and "block3_3" in text and "do not move" in text


def test_the_least_important_layers_are_removed_first(net: nn.Sequential) -> None:
    order = analysis.shift_sparsity(net).least_important()
    assert order[:3] == ["block2_1", "block3_3", "block3_1"] and order[-1] == "block2_2"
    kept = copy.deepcopy(net)
    assert remove_shifts(net, 4) == order[:4]
    for path, layer in net.named_children():
        x = images(6, channels=layer.channels, dtype=torch.float32)
        unmoved = path in order[:4]
        assert torch.equal(run(layer, x), x) == unmoved and layer.offset.requires_grad != unmoved
        assert unmoved or torch.equal(run(layer, x), run(kept.get_submodule(path), x))
    assert len(remove_shifts(net, "100%")) == 9 and analysis.shift_sparsity(net).sparsity == 1
    for wrong in (0, 10, "half", 1.5, None, True):
        with pytest.raises(surgeon.RecipeError, match="count"):
            remove_shifts(net, wrong)  # type: ignore[arg-type]
    with pytest.raises(surgeon.NoSiteError, match="ReLU has no shift layer"):
        remove_shifts(nn.ReLU(), 1)
