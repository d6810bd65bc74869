"""Fresh values of a whole model: what it would hold had it just been built, whoever builds it.

Apart from :mod:`surgeon.fresh`, which serves ops and knows only timm: here what a library built is built again, surgery
is repeated on it, and what nobody built draws by its own code. A part whose start nobody knows is named, not refused.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from surgeon.building import LIBRARIES, Builder, build, library_of, replay
from surgeon.host import unwrap
from surgeon.ledger import Ledger, tensors_of
from surgeon.randomness import generators_kept
from surgeon.resetting import draw_itself, is_unset, own_code, seed_generators, unset_copy

AGAIN = ", operated by the same recipe"


@dataclass(frozen=True)
class FreshValues:
    """Initial values of a model.

    Attributes:
        values: By the model's own names of parameters and buffers, on the CPU, in the model's precision. A buffer that
            no code sets, such as a mask, keeps its value.
        missing: Parameters of which nothing says how they start: name and reason.
        source: Where the values come from, in words.
    """

    values: dict[str, Tensor]
    missing: dict[str, str]
    source: str


def fresh_model_values(model: Any, seed: int) -> FreshValues:
    """Draw initial values for every parameter and buffer of a model; the model is only read.

    What timm or ultralytics built is built again with the same arguments, and where it was operated its record is
    repeated on that. Modules that differ from what the library builds, and all others, draw by their
    ``reset_parameters`` and ``init_weights``; a part that a library built is found inside another model too. The global
    random number generators are as before.

    Args:
        model: Any module, or a ``YOLO`` object; operated or not.
        seed: The same seed draws the same values; for a model of timm's those that ``torch.manual_seed(seed)`` and then
            ``timm.create_model`` give.

    Raises:
        RefusedError: When ``model`` is no module, is wrapped, has no values, or cannot be copied.

    Example:
        >>> import timm
        >>> fresh = fresh_model_values(timm.create_model("test_resnet", num_classes=5), seed=0)
        >>> fresh.source, tuple(fresh.values["fc.weight"].shape), fresh.missing
        ("a fresh build of timm's test_resnet (num_classes=5, in_chans=3)", (5, 96), {})
    """
    module = unwrap(model)
    modes = {part: part.training for part in module.modules()}
    try:
        with generators_kept():
            drawing = _Drawing(module, seed)
            drawing.visit(module, "")
    finally:
        for part, mode in modes.items():  # networks of ultralytics' share one activation, also with the one built here
            part.training = mode
    values = tensors_of(drawing.twin)
    missing = {name: drawing.why_missing(name) for name, tensor in values.items() if is_unset(tensor)}
    return FreshValues({n: t.detach() for n, t in values.items() if n not in missing}, missing, drawing.source())


@dataclass
class _Drawing:
    """A copy of ``module`` that is given fresh values, part by part."""

    module: nn.Module
    seed: int
    done: set[int] = field(default_factory=set)  # parts of the copy that have their values
    built: dict[str, str] = field(default_factory=dict)  # path: how that part was built again
    notes: list[str] = field(default_factory=list)  # what went wrong on the way
    methods: list[str] = field(default_factory=list)  # that drew
    failed: dict[str, str] = field(default_factory=dict)  # path: why its own code failed
    reasons: dict[str, str] = field(default_factory=dict)  # tensor: why it is missing, known from before surgery

    def __post_init__(self) -> None:
        self.twin = unset_copy(self.module)

    def visit(self, module: nn.Module, path: str) -> None:
        """Give the part at ``path`` its values: those of a fresh build, else its children's and then its own code's."""
        if self._build_again(module, path) or self._operate_again(module, path):
            return
        for name, child in module.named_children():
            self.visit(child, _join(path, name))
        own = self.twin.get_submodule(path)
        if id(own) not in self.done and (methods := own_code(own)):
            seed_generators(self.seed, path)
            if (reason := draw_itself(own)) is not None:
                self.failed[path] = reason
            self.methods += methods
        self.done.add(id(own))

    def _build_again(self, module: nn.Module, path: str) -> bool:
        """Take what fits from a fresh build of ``module``; whether all of it does."""
        every, best = [name for name, part in module.named_modules() if _own(part)], None
        for words, base in self._builds(module, path):
            fit = _fitting(base, module)
            if best is None or len(fit) > len(best[1]):
                best = (words, fit, base)
            if len(set(every) & set(fit)) == len(every) and _shapes(tensors_of(base)) == _shapes(tensors_of(module)):
                break
        if best is None or not set(best[1]) & set(every):
            self.notes += [f"{best[0]} has other shapes throughout"] if best is not None else []
            return False
        words, fit, base = best
        for name in fit:
            part = self.twin.get_submodule(_join(path, name))
            _put(_own(base.get_submodule(name)), _own(part))
            self.done.add(id(part))
        odd = [name for name in every if name not in fit]
        self.built[path] = f"{words} except for {_listed(odd)}" if odd else words
        return not odd

    def _builds(self, module: nn.Module, path: str) -> Iterator[tuple[str, nn.Module]]:
        """Fresh builds of what ``module`` may be, operated as it was."""
        ledger = Ledger.of(module)
        for builder in _builders(module):
            words = _words(builder)
            try:
                seed_generators(self.seed, path)
                base, fused = _unfused(builder)
                if ledger is not None:
                    replay(base, ledger.record, ledger.input_size, keep=False)
                if fused:
                    base = base.fuse(verbose=False)  # type: ignore[operator]
            except Exception as error:  # of a foreign builder
                self.notes.append(f"{words} fails: {error}")
            else:
                yield words + (AGAIN if ledger is not None else ""), base

    def _operate_again(self, module: nn.Module, path: str) -> bool:
        """Draw values for ``module`` as it was before surgery and operate on them; whether that can be done."""
        if (ledger := Ledger.of(module)) is None:
            return False
        try:
            before = copy.deepcopy(module)
            (Ledger.of(before) or ledger).take_back(before)
            inner = _Drawing(before, self.seed)
            inner.visit(before, "")
            why = {name: inner.why_missing(name) for name, t in tensors_of(inner.twin).items() if is_unset(t)}
            replay(inner.twin, ledger.record, ledger.input_size, keep=False)
        except Exception as error:  # NaN may be more than an op can compute with
            self.notes.append(f"its surgery cannot be repeated on fresh values: {error}")
            return False
        held, found = tensors_of(self.twin.get_submodule(path)), tensors_of(inner.twin)
        if _shapes(held) != _shapes(found):
            return False
        first = next(iter(why.values()), "its surgery, repeated on fresh values, gives no number")
        self.reasons |= {_join(path, name): why.get(name, first) for name, t in found.items() if is_unset(t)}
        _put(found, held)
        self.built[path] = inner.source() + AGAIN
        return True

    def why_missing(self, name: str) -> str:
        """Why the parameter ``name`` has no fresh value, and what to do."""
        if name in self.reasons:
            return self.reasons[name]
        path = name.rpartition(".")[0]
        part = self.twin.get_submodule(path)
        if path in self.failed:
            why = f", and {self.failed[path]}"
        elif methods := own_code(part):
            why = f", whose {' and '.join(methods)} did not set it"
        else:
            why = " without reset_parameters or init_weights"
        what = f"'{name}' belongs to {repr(path) if path else 'the model'}, a {type(part).__name__}{why}"
        return f"{what}: nothing says how it starts; give the class a reset_parameters that sets it"

    def source(self) -> str:
        """Where the values come from, in words."""
        parts = [f"'{path}': {words}" if path else words for path, words in self.built.items()]
        if self.methods:
            whose = "the other layers" if self.built else "its own layers"
            parts.append(f"{' and '.join(dict.fromkeys(self.methods))} of {whose}")
        parts += [f"of '{path}' {reason}" if path else reason for path, reason in self.failed.items()]
        return "; ".join([*parts, *(self.notes if "" not in self.built else [])]) or "nowhere: it has no values"


def _builders(module: nn.Module) -> Iterator[Builder]:
    """What might build ``module``, the likeliest first; nothing where reading that off a foreign class fails."""
    for library in LIBRARIES.values():
        with suppress(Exception):
            yield from list(library.candidates(module))


def _unfused(builder: Builder) -> tuple[nn.Module, bool]:
    """The model a builder describes, its norms not yet folded away, and whether they are to be."""
    arguments = builder["arguments"]
    fused = library_of(builder)[0] != "timm" and bool(arguments.get("fused"))
    with torch.device("cpu"):
        return build({**builder, "arguments": {**arguments, "fused": False}} if fused else builder), fused


def _words(builder: Builder) -> str:
    """A builder as part of a sentence."""
    name, _ = library_of(builder)
    if name != "timm":
        return f"a fresh build of ultralytics' {builder[name]} from its yaml"
    given = ", ".join(f"{key}={value!r:.60}" for key, value in builder["arguments"].items())
    return f"a fresh build of timm's {builder[name]}" + (f" ({given})" if given else "")


def _fitting(base: nn.Module, module: nn.Module) -> list[str]:
    """Paths of modules that themselves hold tensors of the same names and shapes in both, or none in both."""
    there = dict(base.named_modules())
    parts = ((name, part) for name, part in module.named_modules() if name in there)
    return [name for name, part in parts if _shapes(_own(there[name])) == _shapes(_own(part))]


def _own(part: nn.Module) -> dict[str, Tensor]:
    held = [*part._parameters.items(), *part._buffers.items()]
    return {name: tensor for name, tensor in held if tensor is not None}


def _shapes(tensors: dict[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in tensors.items()}


def _put(values: dict[str, Tensor], held: dict[str, Tensor]) -> None:
    for name, tensor in values.items():
        held[name].data = tensor.detach().to(held[name].dtype)


def _listed(names: list[str], few: int = 3) -> str:
    shown = ", ".join(f"'{name}'" if name else "the model's own values" for name in names[:few])
    return shown if len(names) <= few else f"{shown} and {len(names) - few} more"


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path and name else path or name


__all__ = ["FreshValues", "fresh_model_values"]
