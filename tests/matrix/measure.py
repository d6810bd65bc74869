"""What the matrix records of a model, and the book it is recorded in.

Kept apart from the tests so that a row can be made, looked at and compared by hand: ``measure("resnet18")``.
"""

from __future__ import annotations

import json
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from unittest import mock

import timm
import torch
import torchvision
from torch import nn

import surgeon
from surgeon import locating, planning, tracing
from surgeon.site import Sites
from tests.surgeon.completeness import differences, witness

TORCHVISION = "torchvision/"
Row = dict[str, Any]


@dataclass
class Measured:
    """A row, and what the witness holds against it."""

    row: Row
    differences: list[str]


def build(name: str) -> nn.Module:
    """The model of that name, timm's or ``torchvision/...``, on the meta device: no memory, no weights."""
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if name.startswith(TORCHVISION):
            return torchvision.models.get_model(name.removeprefix(TORCHVISION), weights=None)
        return timm.create_model(name)


def measure(name: str, size: int | None = None) -> Measured:
    """Sites by kind, the operations of the second list by class, and what ``spd`` decides.

    Args:
        name: Of timm, or ``torchvision/...``.
        size: Of the image, where the model does not know.
    """
    model = build(name)
    with one_trace():
        sites = surgeon.locate(model, size)
        testimony = witness(model, sites.input_size)
        row = {**kinds(sites), "others": ordered(testimony.others), "spd": decided(model, "spd", size)}
    return Measured(row, differences(testimony, sites))


def measure_sites(name: str) -> Measured:
    """Sites by kind only."""
    model = build(name)
    sites = surgeon.locate(model)
    return Measured(kinds(sites), differences(witness(model, sites.input_size), sites))


def kinds(sites: Sites) -> Row:
    """Input size, the number of sites of each kind (``kind:via`` where it is no module), and the trace's notes."""
    names = Counter(site.kind if site.via == "module" else f"{site.kind}:{site.via}" for site in sites)
    row: Row = {"input_size": list(sites.input_size), "kinds": ordered(names)}
    return {**row, "notes": list(sites.notes)} if sites.notes else row


def decided(model: nn.Module, recipe: Any, size: int | None = None) -> Row:
    """How many sites an op rewrites, leaves because they are the same already, refuses and why."""
    try:
        changes = surgeon.plan(model, recipe, size).changes
    except surgeon.NoSiteError:
        changes = ()
    except surgeon.RefusedError as error:
        return {"rewritten": 0, "unchanged": 0, "refused": ordered(Counter(_reasons(str(error))))}
    refused = Counter(change.reason for change in changes if change.status == "refused")
    status = Counter(change.status for change in changes)
    return {"rewritten": status["rewritten"], "unchanged": status["unchanged"], "refused": ordered(refused)}


def _reasons(message: str) -> list[str]:
    """Of a step that refuses all its sites: one line tells each."""
    head, *lines = message.splitlines()
    assert "refuses all" in head, message
    return [line.split("' ", 1)[1] for line in lines]


def ordered(counts: Counter[str]) -> dict[str, int]:
    """Plain and sorted, so that a file of it is always the same."""
    return dict(sorted(counts.items()))


@contextmanager
def one_trace() -> Iterator[None]:
    """Inside the block ``locate`` and ``plan`` share one recording of a model: it is half of the time."""
    seen: dict[nn.Module, tracing.Trace] = {}

    def shared(model: nn.Module, sizes: list[tuple[int, int, int]]) -> tracing.Trace:
        if model not in seen:
            seen[model] = tracing.record_forward(model, sizes)
        return seen[model]

    with mock.patch.object(locating, "record_forward", shared), mock.patch.object(planning, "record_forward", shared):
        yield


def timm_names() -> list[str]:
    """Every name of timm's own, sorted; what others registered with it does not count."""
    return sorted(name for name in timm.list_models() if _module(name).startswith("timm."))


def families() -> dict[str, list[str]]:
    """Names by family, the module of timm that holds them; its models for tests left out."""
    found: dict[str, list[str]] = {}
    for name in timm_names():
        if not name.startswith("test_"):
            found.setdefault(_module(name).rpartition(".")[2], []).append(name)
    return found


def smallest(names: list[str]) -> str:
    """The name with the fewest parameters."""
    return min(names, key=lambda name: sum(p.numel() for p in build(name).parameters()))


def _module(name: str) -> str:
    return str(timm.models.model_entrypoint(name).__module__)


def versions() -> dict[str, str]:
    """Of the libraries a row depends on."""
    found = {"surgeon": surgeon.__version__, "timm": timm.__version__}
    found |= {"torch": torch.__version__.split("+")[0], "torchvision": torchvision.__version__.split("+")[0]}
    with suppress(PackageNotFoundError):
        found["ultralytics"] = version("ultralytics")
    return found


@dataclass
class Book:
    """Expected rows by name with the versions they were made with; one line per name on disk."""

    path: Path
    versions: dict[str, str]
    rows: dict[str, Row]
    fresh: dict[str, Row] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Book:
        """Read it; an absent file is an empty book."""
        data = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"versions": {}, "models": {}}
        return cls(path, data["versions"], data["models"])

    def write(self, names: set[str]) -> None:
        """Write the rows with the fresh ones put in, of ``names`` only, and the present versions."""
        rows = {name: row for name, row in sorted({**self.rows, **self.fresh}.items()) if name in names}
        lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(row)}" for name, row in rows.items())
        text = f'{{"versions": {json.dumps(versions())},\n"models": {{\n{lines}\n}}}}\n'
        self.path.write_text(text, encoding="utf-8")

    def complaint(self, name: str, row: Row) -> str | None:
        """How ``row`` differs from what is written, in words; None if it does not."""
        expected = self.rows.get(name)
        if expected == row:
            return None
        now = versions()
        changed = [f"{k} {v} -> {now.get(k)}" for k, v in self.versions.items() if now.get(k) != v]
        lines = [f"made with other versions: {', '.join(changed)}"] if changed else []
        lines += ["the file has no such name"] if expected is None else list(compare(expected, row))
        head = f"'{name}' is not what {self.path.name} says"
        folder = "tests/surgeon/yolo" if "yolo" in self.path.stem else "tests/matrix"
        do = f"review, then pytest -m '' --update-matrix {folder}"
        return "\n".join([head, *lines, do])


def compare(old: Row, new: Row, where: str = "") -> Iterator[str]:
    """Each differing value as ``kinds.block: 8 -> 9``."""
    for key in dict.fromkeys([*old, *new]):
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) or isinstance(b, dict):
            yield from compare(a or {}, b or {}, f"{where}{key}.")
        elif a != b:
            yield f"{where}{key}: {'absent' if a is None else a} -> {'absent' if b is None else b}"
