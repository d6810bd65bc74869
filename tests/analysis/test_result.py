"""A result's file makes the result again."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure
from torch import nn

import analysis
from analysis.result import ReadBack, Row
from surgeon.errors import AnalysisError


class Curve(ReadBack):
    def __init__(self, rows: Sequence[Row], summary: str, settings: Mapping[str, Any]) -> None:
        super().__init__(f"Curve of {settings['model']}", rows, summary, settings)

    def figure(self) -> Figure:
        return Figure()


def test_a_file_makes_a_result_again(tmp_path: Path) -> None:
    made = Curve([{"x_px": 1, "y": 0.5}], "one point", {"model": "net"})
    made.to_json(tmp_path / "curve.json")
    again = Curve.from_json(tmp_path / "curve.json")
    assert str(again) == str(made) and type(again) is Curve and again.settings == made.settings
    with pytest.raises(AnalysisError, match="of the analysis 'curve', not 'robustness'"):
        analysis.Robustness.from_json(tmp_path / "curve.json")
    net, data = nn.Sequential(nn.Conv2d(1, 3, 3, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten()), torch.rand(4, 1, 9, 9)
    batch: Any = [(data, torch.arange(4) % 3)]
    for name, more in (
        ("translation", {"reach": 1, "step": 1}),
        ("consistency", {"protocol": "circular", "reach": 2}),
        ("equivariance", {}),
    ):
        found = getattr(analysis, name)(net, batch, progress=False, **more)
        found.to_json(tmp_path / f"{name}.json")
        again = type(found).from_json(tmp_path / f"{name}.json")
        assert vars(again).keys() == vars(found).keys() and str(again) == str(found) and again.figure().axes
