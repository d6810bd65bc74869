"""Shift consistency: nets whose consistency is known, the protocols' shifts, one pass as many."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

import analysis
import surgeon
from analysis.protocols import Windows
from surgeon.errors import AnalysisError
from tests.analysis.test_translation import Invariant, noise
from tests.contracts import stir


class Reads(nn.Module):
    """Chooses by the column (and row) its upper left pixel comes from, where images count their pixels."""

    def __init__(self, divisor: int, side: int) -> None:
        super().__init__()
        self.divisor, self.side = divisor, side

    def forward(self, x: Tensor) -> Tensor:
        column = x[:, 0, 0, 0].round().long() % self.side
        return nn.functional.one_hot(column // self.divisor % 2, 2).float()


def counting(count: int, side: int) -> list[tuple[Tensor, Tensor]]:
    images = torch.arange(float(side * side)).view(1, 1, side, side).repeat(count, 1, 1, 1)
    return [(images, torch.zeros(count, dtype=torch.long))]


def measure(model: Any, data: Any, protocol: Any, **more: Any) -> analysis.Consistency:
    return analysis.consistency(model, data, protocol, progress=False, **more)


def resnet(name: str = "resnet18", classes: int = 10) -> nn.Module:
    torch.manual_seed(0)
    return stir(timm.create_model(name, num_classes=classes).eval())


def spread(model: nn.Module, data: list[tuple[Tensor, Tensor]]) -> nn.Module:
    """With a bias by which these images are given all classes, not one."""
    with torch.no_grad():
        model.fc.bias -= model(torch.cat([x for x, _ in data])).mean(0)
    return model


def test_aps_with_circular_padding_is_consistent_and_its_strided_twin_is_not() -> None:
    data = noise(3, 64, 12, 10)
    operated = surgeon.apply(resnet(), {"aps": {"padding": "circular"}}, 64)
    found = measure(spread(operated, data), data, "circular", passes=3)
    assert found.consistency == 1.0 and "in 100.00%" in found.summary
    assert measure(spread(resnet(), data), data, "circular", passes=3).consistency < 0.95


def test_an_invariant_net_is_consistent_and_a_strided_one_is_not() -> None:
    assert measure(Invariant(), noise(), "circular", reach=3).consistency == 1.0
    strided = measure(Invariant(stride=2), noise(), "circular", reach=3, passes=8)
    assert strided.consistency < 0.95
    assert [row["pass"] for row in strided.rows] == [*"12345678", "all"]


def test_a_coin_agrees_with_itself_half_the_time() -> None:
    """Classes alternate from column to column, and shifts are uniform and independent."""
    for protocol, more in (("crop", {"size": 8}), ("circular", {})):
        found = measure(Reads(1, 40), counting(800, 40), protocol, **more, passes=2)
        assert found.consistency == pytest.approx(0.5, abs=0.04)
        assert found.settings["accuracy"] == pytest.approx(0.5, abs=0.04)


def test_a_diagonal_of_alternating_classes_never_agrees_with_its_neighbour() -> None:
    found = measure(Reads(1, 40), counting(4, 40), "diagonal", size=8)
    assert found.consistency == 0.0 and len(found.rows) == 33
    assert [row["accuracy"] for row in found.rows[:4]] == [1.0, 0.0, 1.0, 0.0]
    slow = measure(Reads(8, 40), counting(4, 40), "diagonal", size=8)
    assert slow.consistency == pytest.approx(1 - 4 / 32) and slow.settings["never_changes_share"] == 0.0
    still = measure(Reads(40, 40), counting(4, 40), "diagonal", size=8)
    assert still.consistency == still.settings["never_changes_share"] == 1.0
    assert still.rows[0]["p_right"] == pytest.approx(np.e / (1 + np.e)) and still.rows[0]["p_wrong"] < 0.3


def test_answers_that_are_no_numbers_agree_with_nothing() -> None:
    class Broken(Reads):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * torch.nan

    for protocol, more in (("circular", {}), ("diagonal", {"size": 8})):
        found = measure(Broken(40, 40), counting(4, 40), protocol, **more)
        assert found.consistency == 0.0 and found.settings["accuracy"] == 0.0
        assert measure(Reads(40, 40), counting(4, 40), protocol, **more).consistency == 1.0


def test_windows_lie_in_the_middle_of_larger_images() -> None:
    """As after the centre crop of the released code."""
    images = counting(2000, 60)[0]
    crops = Windows("crop", (8, 8), 32, 0).random(images, 0, 0, key=0)[0][:, 0, 0, 0].long() % 60
    assert (int(crops.min()), int(crops.max())) == (10, 41)
    corners = [Windows("diagonal", (8, 8), 32, 0).at(images, 0, 0, shift)[0][0, 0, 0, 0] for shift in (0, 32)]
    assert [int(corner) % 60 for corner in corners] == [10, 42]


def test_the_shifts_are_the_protocols() -> None:
    images = counting(3000, 40)[0]
    crops = Windows("crop", (8, 8), 32, 0).random(images, 0, 0, key=0)[0][:, 0, 0, 0].long()
    assert sorted(set((crops % 40).tolist())) == sorted(set((crops // 40).tolist())) == list(range(32))
    rolls = Windows("circular", None, 3, 0).random(images, 0, 0, key=0)[0]
    moved = (-rolls[:, 0, 0, 0].long() % 40 + 20) % 40 - 20
    assert sorted(set(moved.tolist())) == [-3, -2, -1, 0, 1, 2]
    assert torch.equal(rolls[0].flatten().sort().values, images[0][0].flatten())  # nothing is lost


def test_each_image_has_its_own_shift_however_batches_are_cut() -> None:
    windows, batch = Windows("circular", None, 3, 7), counting(10, 8)[0]
    whole = windows.random(batch, 2, 0, key=5)[0]
    parts = [windows.random((batch[0][a:b], batch[1][a:b]), 2, a, key=5)[0] for a, b in ((0, 4), (4, 10))]
    assert torch.equal(torch.cat(parts), whole) and len({tuple(x.flatten().tolist()) for x in whole}) > 3
    others = [windows.random(batch, 2, 0, key=4), windows.random(batch, 3, 0, key=5)]
    assert not any(torch.equal(other[0], whole) for other in others)


def test_one_pass_is_a_pass_for_each_and_seeds_count() -> None:
    data = noise(3, 40)
    model = spread(resnet("test_resnet", 4), data)
    one, many = (measure(model, data, "crop", size=32, reach=8, method=m) for m in ("single_pass", "naive"))
    assert one.rows == many.rows and one.settings["images_loaded"] == 24
    seeds = [measure(Reads(1, 40), counting(30, 40), "crop", size=8, seed=seed).rows for seed in (0, 0, 1)]
    assert seeds[0] == seeds[1] != seeds[2]


def test_the_model_is_as_it_was() -> None:
    for name in ("test_resnet", "test_convnext", "test_efficientnet", "test_vit"):
        model = timm.create_model(name, num_classes=4).train()
        before, state = {key: value.clone() for key, value in model.state_dict().items()}, torch.get_rng_state()
        measure(model, noise(3, 160 if name == "test_vit" else 32, 4), "circular", reach=3)
        assert all(torch.equal(model.state_dict()[key], value) for key, value in before.items()) and model.training
        assert torch.equal(torch.get_rng_state(), state)


def test_stored_and_drawn(tmp_path: Path) -> None:
    for protocol, more in (("diagonal", {"size": 8}), ("circular", {})):
        found = measure(Reads(8, 40), counting(4, 40), protocol, **more)
        found.to_json(tmp_path / "found.json")
        stored = analysis.read_result(tmp_path / "found.json")
        assert stored.rows == found.rows and len(stored.figure().axes) in (1, 2)
        assert "<svg" in found.report(tmp_path / "page.html").read_text()


@pytest.mark.parametrize(
    ("protocol", "settings", "words"),
    [
        ("random", {}, "it is one of crop, diagonal, circular"),
        ("crop", {}, "needs the window"),
        ("crop", {"size": 8}, r"windows of 8 x 8 have 1 x 1 in images of 8 x 8"),
        ("crop", {"size": 9, "reach": 2}, "the images are 8 x 8"),
        ("diagonal", {"size": 6}, "goes to 32 pixels, and windows of 6 x 6 have room for 2"),
        ("diagonal", {"size": 6, "passes": 2}, "leave it out"),
        ("circular", {"reach": 0}, "at least 1"),
        ("circular", {"passes": 0}, "at least 1"),
    ],
)
def test_mistakes(protocol: Any, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(AnalysisError, match=words):
        measure(Invariant(), noise(), protocol, **settings)
