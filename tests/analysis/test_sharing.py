"""Several processes give the numbers of one, each loading its own batches where that can be had."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import analysis
from analysis.sharing import World, world
from surgeon.errors import AnalysisError

COUNTS = range(8)


def shared(data: Any, size: int, limit: int | None = None) -> list[list[tuple[int, Any]]]:
    """What each of ``size`` processes goes through."""
    found = []
    for rank in range(size):
        own = World(rank, size).own_rounds(data, limit)
        found.append(list(World(rank, size).rounds(data) if own is None else own))
    return found


def check(rounds: list[list[tuple[int, Any]]], batches: list[Any]) -> None:
    """Equally many rounds for all, and together every batch once under its number."""
    assert len({len(mine) for mine in rounds}) == 1
    held = sorted((number, batch) for mine in rounds for number, batch in mine if batch is not None)
    assert held == list(enumerate(batches))
    for rank, mine in enumerate(rounds):
        assert [number for number, _ in mine] == list(range(rank, len(mine) * len(rounds), len(rounds)))


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("count", COUNTS)
def test_any_iterable(count: int, size: int) -> None:
    check(shared([f"batch {i}" for i in range(count)], size), [f"batch {i}" for i in range(count)])
    assert World(0, 2).own_rounds([1, 2]) is None


class Items(Dataset[int]):
    """Numbers; remembers which were loaded."""

    def __init__(self, count: int) -> None:
        self.count, self.loaded = count, list[int]()

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> int:
        if index >= self.count:
            raise IndexError
        self.loaded.append(index)
        return index


@pytest.mark.parametrize("limit", [None, 1, 5, 6, 100])
@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("items", [0, 1, 7, 12])
def test_a_data_loader_loads_its_own_share(items: int, size: int, limit: int | None) -> None:
    everything = list(range(items))[:limit]
    expected = [everything[i : i + 3] for i in range(0, len(everything), 3)]
    loaded, rounds = list[int](), list[Any]()
    for rank in range(size):
        data = DataLoader(Items(items), batch_size=3, collate_fn=list)
        own = World(rank, size).own_rounds(data, limit)
        assert own is not None
        rounds.append(list(own))
        loaded += data.dataset.loaded
    check(rounds, expected)
    assert sorted(loaded) == everything, "nothing is loaded twice"


def test_a_loader_keeps_its_settings() -> None:
    data = DataLoader(Items(7), batch_size=2, drop_last=True, collate_fn=tuple, timeout=0)
    check(shared(data, 2), [(0, 1), (2, 3), (4, 5)])


def test_loaders_that_are_gone_through_whole() -> None:
    class Stream(IterableDataset[int]):
        def __iter__(self) -> Iterator[int]:
            return iter(range(4))

    class Mine(DataLoader[int]):
        pass

    for data in (
        DataLoader(Stream(), batch_size=2, collate_fn=list),
        Mine(Items(4), batch_size=2, collate_fn=list),
        DataLoader(Items(4), batch_sampler=[[1, 0], [3, 2]], collate_fn=list),
    ):
        assert World(0, 2).own_rounds(data) is None
    assert shared(DataLoader(Items(4), batch_sampler=[[1, 0], [3, 2]], collate_fn=list), 2)[1] == [(1, [3, 2])]


def test_a_loader_that_shuffles_is_refused_in_several_processes() -> None:
    data = DataLoader(Items(4), batch_size=2, shuffle=True)
    assert World().own_rounds(data) is None
    with pytest.raises(AnalysisError, match="shuffles, and each process would see another order; give shuffle=False"):
        World(0, 2).own_rounds(data)


class Parts:
    """A user's own data, which can be divided."""

    def __init__(self, count: int, lost: int = 0) -> None:
        self.batches, self.lost = [f"batch {i}" for i in range(count)], lost

    def __len__(self) -> int:
        return len(self.batches)

    def part(self, rank: int, size: int) -> list[str]:
        return self.batches[: len(self) - self.lost][rank::size]


@pytest.mark.parametrize("count", COUNTS)
def test_an_object_with_parts(count: int) -> None:
    check(shared(Parts(count), 2), Parts(count).batches)


def test_an_object_that_promises_more_than_it_has() -> None:
    with pytest.raises(AnalysisError, match="says it has 3 batches, but number 2 is missing"):
        shared(Parts(3, lost=1), 2)


def test_alone() -> None:
    assert world() == World(0, 1) and World().gathered("a") == ["a"]


# two processes

CHILD = """
import json, sys
from pathlib import Path
import torch
from torch import distributed
from tests.analysis.test_sharing import cases

torch.set_num_threads(1)
distributed.init_process_group("gloo")
found = cases(Path(sys.argv[1]))
if distributed.get_rank() == 0:
    Path(sys.argv[1], "two.json").write_text(json.dumps(found))
distributed.destroy_process_group()
"""


class Ends(list[Any]):
    """Batches; in the second process Ctrl-C is pressed while the third is loaded."""

    def __iter__(self) -> Iterator[Any]:
        import signal

        for number, batch in enumerate(super().__iter__()):
            if number == 2 and world().rank == 1:
                signal.raise_signal(signal.SIGINT)
            yield batch


def cases(folder: Path) -> dict[str, Any]:
    """Rows and settings of several analyses, in however many processes."""
    import surgeon
    from tests.analysis.sweeping import batches

    def net(seed: int) -> torch.nn.Module:
        torch.manual_seed(seed)
        return surgeon.create_model("fcn", depth=2, width=8, in_chans=1, img_size=8)

    def rows(data: Any, **settings: Any) -> Any:
        result = analysis.robustness(net(0), data, initial=net(1).state_dict(), draws=2, progress=False, **settings)
        return {"rows": result.rows, "complete": result.complete, "loaded": result.settings["images_loaded"]}

    def refused(data: Any, **settings: Any) -> str:
        try:
            rows(data, **settings)
        except AnalysisError as error:
            return str(error)
        return ""

    def data(count: int) -> Any:
        return batches(8, [3] * (count - 1) + [2], channels=1)

    images = torch.cat([x for x, _ in data(5)])
    loader = DataLoader(TensorDataset(images, torch.arange(len(images)) % 10), batch_size=3)
    found = {f"{count} batches": rows(data(count)) for count in (1, 2, 3, 6)}
    for method in ("single_pass", "naive"):
        found[f"stop, {method}"] = rows(data(6), stop=0.6, tolerance=0.2, method=method)
        found[f"loader, {method}"] = rows(loader, method=method)
    found["limit"] = rows(loader, limit=7)
    found["recalibrate"] = rows(data(3), batchnorm="recalibrate", calibration=data(1))
    ledger = folder / f"ledger of {world().size}"
    found["interrupted"] = rows(Ends(data(6)), ledger=ledger)
    found["continued"] = rows(data(6), ledger=ledger)
    if world().rank == 0:
        ledger.write_text("damaged")
    found["damaged"] = refused(data(2), ledger=ledger).replace(str(ledger), "")
    if world().size > 1:
        found["other data"] = refused(data(3)[:: 1 - 2 * world().rank])
        found["shuffled"] = refused(DataLoader(loader.dataset, batch_size=3, shuffle=True))
    return json.loads(json.dumps(found))


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, Any]]:
    folder = tmp_path_factory.mktemp("two")
    (folder / "child.py").write_text(CHILD)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launch, str(folder / "child.py"), str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return cases(folder), json.loads((folder / "two.json").read_text())


@pytest.mark.slow
def test_two_processes_give_the_numbers_of_one(both: tuple[dict[str, Any], dict[str, Any]]) -> None:
    one, two = both
    names = [name for name in one if "rows" in one[name] and name != "interrupted"]
    assert len(names) >= 10
    for name in names:
        assert two[name]["rows"] == one[name]["rows"], name
        assert two[name]["complete"] and one[name]["complete"], name
    assert two["loader, single_pass"]["loaded"] == one["loader, single_pass"]["loaded"] == 14
    assert two["damaged"] == one["damaged"] != ""
    changed = json.loads(json.dumps(two["6 batches"]["rows"]))
    changed[0]["loss"] += 1e-6
    assert changed != one["6 batches"]["rows"]


@pytest.mark.slow
def test_ctrl_c_in_one_process_ends_all_in_the_same_round(both: tuple[dict[str, Any], dict[str, Any]]) -> None:
    _, two = both
    assert not two["interrupted"]["complete"]
    assert {row["images"] for row in two["interrupted"]["rows"]} == {12}, "two rounds of two batches"


@pytest.mark.slow
def test_data_that_differ_between_processes_are_refused(both: tuple[dict[str, Any], dict[str, Any]]) -> None:
    _, two = both
    assert "holds other images" in two["other data"] and "shuffles" in two["shuffled"]
