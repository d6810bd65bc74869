"""Folders that keep states of a network: of our fine-tuner, of ultralytics' trainer, of ``surgeon.save``, of anybody.

Apart from the files in them, because here names and places say what was trained for how long.
"""

from __future__ import annotations

from pathlib import Path

from analysis.state_files import PICKLES, Kept, Tensors, file_of, header, label_of
from surgeon.errors import AnalysisError
from surgeon.manifest import MANIFEST, read_manifest
from surgeon.storage import read_tensors

RECIPE, TRAJECTORY = "recipe.yaml", "trajectory"  # of a run of ours


def opened(path: Path) -> list[Kept]:
    """The states that a file or a folder keeps, in ascending order of epochs.

    Raises:
        AnalysisError: When there is no such file or folder, or it is of no kind that is known.
        LoadError: When what ``surgeon.save`` wrote is damaged.

    Example:
        >>> import tempfile, torch
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder) / "epoch_0010.pt"
        ...     torch.save(torch.nn.Linear(3, 2).state_dict(), file)
        ...     [kept.label for kept in opened(file)]
        ['10']
    """
    if path.is_dir():
        return ascending(_folder(path))
    if not path.is_file():
        raise AnalysisError(f"there is no file or folder {path} in {Path.cwd()}; check the path")
    return [file_of(path)]


def ascending(kept: list[Kept]) -> list[Kept]:
    """Those labelled by a number first, the smallest of them first; the others as they are."""
    return sorted(kept, key=lambda one: (0, int(one.label)) if one.label.isdecimal() else (1, 0))


def _folder(folder: Path) -> list[Kept]:
    if (folder / MANIFEST).is_file():
        return [_saved(folder)]
    if (folder / TRAJECTORY).is_dir():
        return _files(folder / TRAJECTORY)
    weights = folder / "weights"
    if weights.is_dir() and any(weights.glob("*.pt")):
        return _run_of_ultralytics(weights)
    if any(folder.glob("last.pt")) or any(folder.glob("epoch*.pt")):
        return _run_of_ultralytics(folder)
    return _run(folder) if (folder / RECIPE).is_file() else _files(folder)


def _files(folder: Path) -> list[Kept]:
    found = [path for path in sorted(folder.iterdir()) if path.suffix in (*PICKLES, ".safetensors") and path.is_file()]
    if not found:
        raise AnalysisError(
            f"{folder} keeps no state of a network: no trajectory/, no weights/*.pt, no {MANIFEST} of surgeon.save, no "
            f".safetensors, .pt or .pth file; name a folder that does"
        )
    return [file_of(path) for path in found if not path.name.startswith(".")]


def _run(folder: Path) -> list[Kept]:
    """Of a run of ours that keeps its states further down: those of its only variant that does."""
    inner = {path.parent for path in folder.glob(f"*/{TRAJECTORY}")}
    inner |= {path.parent for path in folder.glob("*/weights") if any(path.glob("*.pt"))}
    if len(inner) == 1:
        return _folder(inner.pop())
    if inner:
        raise AnalysisError(f"{folder} keeps several networks: name one of {', '.join(map(str, sorted(inner)))}")
    raise AnalysisError(
        f"{folder} kept no epochs: set train.keep_epochs: [0, 1, 10] (of a detector train.save_period) in its recipe "
        "and run it again"
    )


def _run_of_ultralytics(folder: Path) -> list[Kept]:
    """``epoch0.pt``, ``epoch10.pt`` by the epochs trained, ``last.pt`` where it is none of them, and ``best.pt``."""
    every = [file_of(path) for path in sorted(folder.glob("*.pt"), key=lambda p: p.stem in ("last", "best"))]
    return list({one.label: one for one in reversed(every)}.values())[::-1]


def _saved(folder: Path) -> Kept:
    """What ``surgeon.save`` wrote: its digests are checked when the values are read."""
    manifest = read_manifest(folder)
    stems = [stem for stem in ("weights", "buffers") if stem in manifest["files"]]
    headers = {stem: header(folder / Path(manifest["files"][stem]["name"]).name) for stem in stems}

    def read() -> Tensors:
        return {name: tensor for stem in stems for name, tensor in read_tensors(folder, manifest, stem).items()}

    shapes = {name: shape for header in headers.values() for name, shape in header.items()}
    return Kept(label_of(folder), str(folder), shapes, read, frozenset(headers.get("buffers", ())))
