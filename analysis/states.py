"""Kept checkpoints: states of a network during its training, by label, whatever file, folder or object holds them.

Apart from the analyses that put them into a model: here names and shapes are compared with it before anything runs.
Memory holds one state at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from analysis.state_files import WRAPPED, Kept, Shapes, Tensors, shapes_of, unpacked
from analysis.state_folders import ascending, opened
from surgeon.errors import AnalysisError
from surgeon.host import unwrap

PREFIXES = ("module.", "_orig_mod.", "model.")  # of DDP, torch.compile, and objects that hold the network
COUNTERS = ("n_averaged", "total_ops", "total_params")  # left in state dicts by tools that average or count
TAKEN = ("rerand", "final")  # treatments of their own
FEW = 3


class States(Mapping[str, Tensors]):
    """States by label, each read when it is asked for: tensors by the model's own names, on the CPU.

    Attributes:
        kept: What was opened, in the order of the labels.
        where: File, folder or object of each label.
        missing_buffers: Buffers of the model that a state does not hold, by label; only labels where there are any.
    """

    def __init__(self, kept: Sequence[Kept], model: nn.Module) -> None:
        self.kept = list(kept)
        self._kept = {one.label: one for one in kept}
        self._names = _Names(model)
        self.where = {label: one.where for label, one in self._kept.items()}
        found = {label: self._names.fit(one, one.shapes) for label, one in self._kept.items()}
        buffers = {label: self._names.buffers - set(names.values()) for label, names in found.items()}
        self.missing_buffers = {label: tuple(sorted(names)) for label, names in buffers.items() if names}

    def __getitem__(self, label: str) -> Tensors:
        one = self._kept[label]
        tensors = one.read()
        names = self._names.fit(one, shapes_of(tensors))
        return {own: self._names.like(own, tensors[name]) for name, own in names.items()}

    def __iter__(self) -> Iterator[str]:
        return iter(self._kept)

    def __len__(self) -> int:
        return len(self._kept)

    def __repr__(self) -> str:
        return f"States({', '.join(self._kept)})"


def read_states(source: Any, model: Any) -> States:
    """Open kept states of a model: names and shapes are compared at once, values are read when they are asked for.

    Labels are the number of epochs trained where that is known, ascending, and else the name of the file; of state
    dicts and modules their position. In a run of ultralytics ``epoch0.pt`` was trained for one epoch, its label is "1":
    that trainer keeps averaged weights in float16, and never the untrained ones. Names may have the prefixes that DDP
    and ``torch.compile`` put before them. Of a file that holds averaged weights too those are read. Tensors in memory
    are not copied.

    Args:
        source: A state dict; a module or ``YOLO`` object; a file (.safetensors, .pt, .pth), read without running code;
            a folder of a run of ours or its ``trajectory``, of a run of ultralytics, of ``surgeon.save``, or of files;
            a sequence of these; or a mapping from labels of your own to these, whose order is kept.
        model: Whose states they are; it is only read.

    Returns:
        A mapping from labels to tensors by the model's own names of parameters and buffers, on the CPU and in the
        model's precision.

    Raises:
        AnalysisError: When a source is missing, damaged or of no known kind, lacks a parameter, holds a tensor that the
            model has not or in another shape, shares memory with the model, or when two have the same label.
        SurgeonError: When ``model`` is no module.

    Example:
        >>> net = nn.Linear(3, 2)
        >>> states = read_states([nn.Linear(3, 2), nn.Linear(3, 2)], net)
        >>> list(states), tuple(states["1"]["weight"].shape)
        (['0', '1'], (2, 3))
    """
    module = unwrap(model)
    kept = _opened(source)
    labels = [one.label for one in kept]
    for one in kept:
        if labels.count(one.label) > 1:
            same = " and ".join(other.where for other in kept if other.label == one.label)
            raise AnalysisError(f"{same} have the same label '{one.label}'; pass a mapping with labels of your own")
        if one.label in TAKEN:
            raise AnalysisError(f"the label '{one.label}' of {one.where} has a meaning of its own; pass {{label: ...}}")
        _insist_apart(one, module)
    return States(kept, module)


def initial_state(source: Any, model: Any) -> Tensors:
    """Read the state a training began with: the one given, or that of label "0" where a source holds several.

    Args:
        source: As of :func:`read_states`.
        model: As there.

    Raises:
        AnalysisError: As there, and when a source holds several and none of label "0".

    Example:
        >>> sorted(initial_state(nn.Linear(3, 2).state_dict(), nn.Linear(3, 2)))
        ['bias', 'weight']
    """
    states = read_states(source, model)
    label = next(iter(states)) if len(states) == 1 else "0"
    if label not in states:
        held = ", ".join(states) or "none"
        raise AnalysisError(
            f"which state did the training begin with? The source holds {held}, and no '0'; name its file, or keep it "
            "(train.keep_epochs: [0]; of ultralytics yolo.model.state_dict(), copied before train())"
        )
    return states[label]


def _opened(source: Any, place: str = "0") -> list[Kept]:
    """The states of any source; ``place`` labels those that say nothing of themselves."""
    if isinstance(source, States):
        return source.kept
    if isinstance(source, (str, Path)):
        return opened(Path(source).expanduser())
    if isinstance(source, nn.Module):
        module = unwrap(source)
        held, where = unpacked(module, f"a {type(module).__name__}"), f"the {type(module).__name__} given"
        return [Kept(place, where, shapes_of(held), lambda: held, _caches(module), live=True)]
    if isinstance(source, Mapping) and _is_state(source):
        state = unpacked(source, "the state dict given")
        return [Kept(place, f"the state dict given as '{place}'", shapes_of(state), lambda: state, live=True)]
    if isinstance(source, Mapping):
        return [one for label, inner in source.items() for one in _labelled(str(label), _opened(inner))]
    if isinstance(source, Sequence):
        return ascending([one for i, inner in enumerate(source) for one in _opened(inner, str(i))])
    raise AnalysisError(
        f"a {type(source).__name__} is no source of states; pass a state dict, a module, a file, a folder, a sequence "
        "of these, or a mapping from labels to these"
    )


def _is_state(source: Mapping[Any, Any]) -> bool:
    """Whether it is one state, maybe beside an optimiser's, rather than several by label."""
    if _has_tensors(source):
        return True
    sources = all(isinstance(one, (str, Path, nn.Module)) or _has_tensors(one) for one in source.values())
    return not sources and any(key in source for key in WRAPPED)


def _has_tensors(thing: Any) -> bool:
    return isinstance(thing, Mapping) and any(isinstance(value, Tensor) for value in thing.values())


def _caches(module: nn.Module) -> frozenset[str]:
    return frozenset(dict(module.named_buffers()).keys() - module.state_dict().keys())


def _labelled(label: str, kept: list[Kept]) -> list[Kept]:
    if len(kept) == 1:
        return [replace(kept[0], label=label)]
    return [replace(one, label=f"{label}/{one.label}") for one in kept]


def _insist_apart(one: Kept, module: nn.Module) -> None:
    """Refuse tensors that are the model's own, for what is done to it would be done to them."""
    if not one.live:
        return
    own = {tensor.untyped_storage().data_ptr() for tensor in module.state_dict().values() if tensor.numel()}
    shared = [name for name, t in one.read().items() if t.numel() and t.untyped_storage().data_ptr() in own]
    if shared:
        raise AnalysisError(
            f"'{shared[0]}' of {one.where} is the model's own tensor, and changes with it; keep a copy of the state, "
            "copy.deepcopy(model.state_dict()), when it is to be kept"
        )


class _Names:
    """The names and shapes of a model's tensors, and which of another's names mean them."""

    def __init__(self, model: nn.Module) -> None:
        self.kind = type(model).__name__
        self.tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        self.parameters = [name for name, _ in model.named_parameters()]
        self.buffers = {name for name, _ in model.named_buffers()} & model.state_dict().keys()
        first = {id(tensor): name for name, tensor in self.tensors.items()}
        every = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
        self.aliases = {name: first[id(tensor)] for name, tensor in every}

    def own(self, name: str) -> str | None:
        """The model's name of what a state calls ``name``; None where it has none."""
        short = name.replace("_orig_mod.", "")
        while name not in self.aliases and short not in self.aliases:
            prefix = next((prefix for prefix in PREFIXES if short.startswith(prefix)), None)
            if prefix is None:
                return None
            short = short.removeprefix(prefix)
        return self.aliases[name if name in self.aliases else short]

    def fit(self, one: Kept, shapes: Shapes) -> dict[str, str]:
        """The model's name of each name in a state.

        Raises:
            AnalysisError: When the state is another network's.
        """
        wanted, names, foreign, other = shapes_of(self.tensors), dict[str, str](), list[str](), list[str]()
        for name, shape in shapes.items():
            own = self.own(name)
            if own is not None and wanted[own] == shape:
                names[name] = own
            elif name in one.caches or name.rpartition(".")[2] in COUNTERS:
                continue
            elif own is None:
                foreign.append(f"'{name}' is none of the model's")
            else:
                other.append(f"'{own}' is {shape} there, {wanted[own]} in the model")
        found = {self.own(name) for name in shapes}
        missing = [f"'{name}' is missing" for name in self.parameters if name not in found]
        if odd := [_few(kind) for kind in (missing, foreign, other) if kind]:
            raise AnalysisError(
                f"{one.where} holds no state of this {self.kind}: {'; '.join(odd)}; pass states of the same "
                "architecture, classes and surgery"
            )
        return names

    def like(self, own: str, tensor: Tensor) -> Tensor:
        """A tensor read, in the precision of the model's."""
        return tensor.detach().to("cpu", self.tensors[own].dtype)


def _few(items: list[str]) -> str:
    return ", ".join(items[:FEW]) + (f" and {len(items) - FEW} more" if len(items) > FEW else "")
