"""The demo, quick: it shows the sites, changes nothing by the surgery, and leaves a folder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from rich.console import Console

import surgeon
from recipes import cli
from recipes.data import ALONE, batch, open_source
from recipes.demo import demonstrate
from recipes.evaluating import evaluate
from recipes.loading import load
from surgeon import RecipeError


@pytest.mark.slow  # the README's block does the same
def test_quick_demo(tmp_path: Path, recording: Console, quiet: Console) -> None:
    result = demonstrate(tmp_path / "demo", quick=True, console=recording)
    said = recording.export_text()
    for words in ("strided_pool", "3 rewritten", "same function: over 450 images", "top-1 agreement 100.00%"):
        assert words in said
    assert "too few epochs to say anything about accuracy" in said
    rows = {row["variant"]: row for row in result.rows}
    assert rows["original"]["accuracy_before"] == rows["spd"]["accuracy_before"]
    for file in ("recipe.yaml", "curves.png", "spd/record.txt", "spd/metrics.jsonl", "spd/verification.txt"):
        assert (tmp_path / "demo" / file).is_file()
    with pytest.raises(RecipeError, match="holds the run of another recipe"):
        demonstrate(tmp_path / "demo", console=quiet)


def test_surgery_keeps_every_prediction(tmp_path: Path) -> None:
    section = load("digits_spd").data
    assert section is not None
    data = batch(open_source(section), None, batch_size=64)
    before = surgeon.create_model("digits_convnet")
    after = surgeon.apply(surgeon.create_model("digits_convnet"), "spd")
    fresh = evaluate(after, data.val, ALONE).hits
    after = surgeon.undo(after)
    after.load_state_dict(before.state_dict())
    operated = surgeon.apply(after, "spd")
    assert evaluate(operated, data.val, ALONE).hits == evaluate(before, data.val, ALONE).hits
    assert fresh != evaluate(before, data.val, ALONE).hits  # another net's predictions do differ


@pytest.mark.slow
def test_full_demo_passes_98_percent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.set_num_threads(2)
    assert cli.main(["demo", "--out", str(tmp_path / "demo")]) == 0
    said = capsys.readouterr().out
    rows = [line.split() for line in said.splitlines() if line.startswith(("original  ", "spd  "))]
    assert all(float(row[4].rstrip("%")) > 98 and float(row[5].rstrip("%")) > 98 for row in rows[-2:])
