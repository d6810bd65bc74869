"""The ledger of a sweep: an interrupted one goes on as if nothing had been, and what is not its own is refused."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import surgeon
from analysis import readings as module
from analysis import robustness
from analysis.readings import FINAL, Ledger, Readings
from analysis.result import Row
from surgeon.errors import AnalysisError
from tests.analysis.sweeping import batches

ABOUT = {"analysis": "robustness", "seed": 0}


def some() -> Readings:
    held = Readings()
    for batch, wrong in enumerate(([0, 1, 0], [1, 1])):
        held.add(FINAL, batch, {"error": np.array(wrong, np.uint8), "loss": np.array(wrong) * 0.5})
        held.add("a|rerand|0", batch, {"error": np.ones(len(wrong), np.uint8), "loss": np.full(len(wrong), np.nan)})
        held.check(batch, 7 + batch)
    return held


def same(one: Readings, other: Readings) -> bool:
    left, right = one.pack(), other.pack()
    return left.keys() == right.keys() and all(
        np.array_equal(left[k], right[k], equal_nan=left[k].dtype.kind == "f") and left[k].dtype == right[k].dtype
        for k in left
    )


def test_values_images_and_differences() -> None:
    held = some()
    assert held.values(FINAL, "error").tolist() == [0, 1, 0, 1, 1] and held.images(FINAL) == 5
    assert held.paired("a|rerand|0", "error").tolist() == [1, 0, 1, 0, 0]
    assert held.metrics() == ["error", "loss"] and held.variants() == [FINAL, "a|rerand|0"]
    assert held.values("unknown", "error").size == 0 == held.images("unknown")
    held.keep_until("a|rerand|0", 0)
    assert held.paired("a|rerand|0", "error").tolist() == [1, 0, 1] and held.has(FINAL, 1)
    assert not held.has("a|rerand|0", 1)


def test_a_batch_with_other_images_is_noticed() -> None:
    held = some()
    held.check(1, 8)
    with pytest.raises(AnalysisError, match=r"batch 1 of the data holds other images .* shuffle=False"):
        held.check(1, 9)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "ledger.npz"
    assert same(Ledger(path, ABOUT).read(), Readings())
    Ledger(path, ABOUT).write(some())
    again = Ledger(str(path), ABOUT).read()
    assert same(again, some()) and again.marks == {0: 7, 1: 8}
    assert [p.name for p in path.parent.iterdir()] == ["ledger.npz"]
    with pytest.raises(AnalysisError, match="holds other images"):
        again.check(0, 1)


@pytest.mark.parametrize("about", [{**ABOUT, "seed": 1}, {"analysis": "robustness"}, {**ABOUT, "limit": None, "x": 1}])
def test_another_analysis(about: dict[str, Any], tmp_path: Path) -> None:
    Ledger(tmp_path / "ledger", ABOUT).write(some())
    with pytest.raises(AnalysisError, match=r"is the ledger of another analysis: .* name another file, or remove it"):
        Ledger(tmp_path / "ledger", about).read()


def test_a_damaged_file_is_refused_in_words(tmp_path: Path) -> None:
    """Cut off anywhere, or with any byte changed: it is read as it was, or refused; no other error comes up."""
    path, refused = tmp_path / "ledger", 0
    Ledger(path, ABOUT).write(some())
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    cut = [whole[:length] for length in rng.integers(0, len(whole) - 1, 60)]
    changed = []
    for place in rng.integers(0, len(whole), 150):
        data = bytearray(whole)
        data[place] ^= int(rng.integers(1, 256))
        changed.append(bytes(data))
    plain = tmp_path / "plain.npy"
    np.save(plain, np.zeros(3))
    for data in [*cut, *changed, b"", b"text", json.dumps(ABOUT).encode(), plain.read_bytes()]:
        path.write_bytes(data)
        try:
            assert same(Ledger(path, ABOUT).read(), some())
        except AnalysisError as error:
            refused += 1
            assert str(path) in str(error)
    assert refused > 150


def test_a_ledger_without_what_it_is_about(tmp_path: Path) -> None:
    for name, arrays in (
        ("a", {}),
        ("b", {"about": np.array("3")}),
        ("c", {"about": np.array("{}"), "x\ny": [1]}),
        ("d", {"about": "{}", "checksum": 1}),
    ):
        with (tmp_path / name).open("wb") as file:
            np.savez(file, **arrays)
        with pytest.raises(AnalysisError, match="no ledger of an analysis, or damaged"):
            Ledger(tmp_path / name, {}).read()


def test_it_is_written_in_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "ledger"
    Ledger(path, ABOUT).write(some())
    before = path.read_bytes()

    def fails(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", fails)
    more = some()
    more.add("b|rerand|0", 0, {"error": np.ones(3, np.uint8), "loss": np.ones(3)})
    with pytest.raises(KeyboardInterrupt):
        Ledger(path, ABOUT).write(more)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(AnalysisError, match=r"ledger .* cannot be written: .*; name another"):
        Ledger(tmp_path / "file" / "ledger", ABOUT).write(some())
    with pytest.raises(AnalysisError, match="no ledger"):
        Ledger(tmp_path, ABOUT).read()


# going on


class Interrupted(list[Any]):
    """Batches; Ctrl-C before one of them, counted over all passes."""

    def __init__(self, at: int) -> None:
        super().__init__(DATA)
        self.left = at

    def __iter__(self) -> Iterator[Any]:
        for batch in super().__iter__():
            if self.left == 0:
                raise KeyboardInterrupt
            self.left -= 1
            yield batch


DATA = batches(8, [4, 5, 4, 3], channels=1)


def net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return surgeon.create_model("fcn", depth=2, width=12, in_chans=1, img_size=8)


def rows(ledger: Path | None, data: Any = DATA, **settings: Any) -> list[Row]:
    initial = net(1).state_dict()
    return robustness(net(), data, initial=initial, draws=2, progress=False, ledger=ledger, **settings).rows


SETTINGS: dict[str, dict[str, Any]] = {
    "single_pass": {},
    "naive": {"method": "naive"},
    "stop": {"stop": 0.6, "tolerance": 0.2},
    "naive with stop": {"method": "naive", "stop": 0.6, "tolerance": 0.2},
    "reset": {"batchnorm": "reset", "limit": 14},
    "recalibrate": {"batchnorm": "recalibrate", "calibration": DATA[:1]},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_going_on_gives_the_rows_of_an_uninterrupted_run(name: str, tmp_path: Path) -> None:
    expected, ended_early = rows(None, **SETTINGS[name]), 0
    for at in (1, 3):
        ledger = tmp_path / f"{at}"
        ended_early += rows(ledger, Interrupted(at), **SETTINGS[name]) != expected
        assert rows(ledger, **SETTINGS[name]) == expected
    assert ended_early >= 1


def test_what_is_known_is_not_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows(tmp_path / "ledger")
    monkeypatch.setattr("analysis.runner.Runner.in_one_pass", None)
    assert rows(tmp_path / "ledger") == rows(tmp_path / "ledger")


def test_partial_results_say_so(tmp_path: Path) -> None:
    result = robustness(net(), Interrupted(2), progress=False)
    assert not result.complete and not result.settings["complete"] and result.settings["images"] == 9
    assert "stopped before all images were measured" in result.summary
    assert {row["images"] for row in result.rows} == {9}
    with pytest.raises(KeyboardInterrupt):
        robustness(net(), Interrupted(0), progress=False)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("weights", {"model": net(2)}),
        ("seed", {"seed": 1}),
        ("initial state", {"initial": net(3).state_dict()}),
        ("draws", {"draws": 1}),
        ("method", {"method": "naive"}),
        ("limit", {"limit": 3}),
        ("stop", {"stop": True}),
        ("metrics", {"metrics": {"mine": lambda logits, targets: targets}}),
    ],
)
def test_a_ledger_of_other_settings(name: str, change: dict[str, Any], tmp_path: Path) -> None:
    given = {"initial": net(1).state_dict(), "draws": 2, "ledger": tmp_path / "ledger", "progress": False}
    robustness(net(), DATA, **given)
    changed = {**given, **change}
    with pytest.raises(AnalysisError, match="is the ledger of another analysis"):
        robustness(changed.pop("model", net()), DATA, **changed)


def test_a_ledger_of_other_data(tmp_path: Path) -> None:
    rows(tmp_path / "ledger")
    with pytest.raises(AnalysisError, match="holds other images than in an earlier pass or run"):
        rows(tmp_path / "ledger", data=DATA[::-1])


def test_the_ledger_is_written_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[int] = []
    monkeypatch.setattr("analysis.sweeping.EVERY", 1e-9)
    usual = module.Ledger.write
    monkeypatch.setattr(Ledger, "write", lambda self, r: (written.append(r.images(FINAL)), usual(self, r)))
    rows(tmp_path / "ledger")
    assert written == [4, 9, 13, 16, 16]
