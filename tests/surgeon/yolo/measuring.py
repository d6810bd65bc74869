"""What the books record of a network of ultralytics': what is found in it, what each op decides, how it fares.

Kept apart from the tests so that a row can be made, looked at and compared by hand: ``measure("yolov5.yaml")``.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

import surgeon
from tests.contracts import images, new_tensors, relative, run, site_errors, stir
from tests.matrix.measure import Measured, Row, decided, kinds, one_trace, ordered
from tests.surgeon.completeness import differences, witness
from tests.surgeon.yolo.zoo import build, size_of

CONV_FIRST = "spd, order conv-spd"
OPS: dict[str, Any] = {
    "spd": "spd",
    CONV_FIRST: {"spd": {"order": "conv-spd"}},
    "spatial_shuffle": "spatial_shuffle",
    "shift": "shift",
    "remove": "remove",
}
EXACT = ("spd", CONV_FIRST)
QUICK = ("spd",)


def measure(name: str, ops: Sequence[str] = tuple(OPS)) -> Measured:
    """Sites by kind, the operations of the second list by class, and what each op decides, at 640 pixels."""
    model = build(name)
    with one_trace():
        sites = surgeon.locate(model)
        testimony = witness(model, sites.input_size)
        decisions = {ops[0]: decided(model, OPS[ops[0]])}  # the first works on the same recording
    decisions |= {op: decided(model, OPS[op]) for op in ops[1:]}
    row = {**kinds(sites), "others": ordered(testimony.others), "ops": decisions}
    return Measured(row, differences(testimony, sites))


def stirred(name: str) -> nn.Module:
    """The network in float64 with values as a trained one has."""
    return stir(build(name).double()).eval()


def trials(name: str) -> Row:
    """One :func:`trial` of each op; None where it rewrites no site."""
    before = stirred(name)
    return {op: trial(before, op, size_of(name)) for op in OPS}


def trial(before: nn.Module, op: str, size: int, training: bool = True) -> Row | None:
    """Operate on a copy, run it, fuse it, take a training step, undo it; None where the op rewrites no site.

    Args:
        before: A network in float64.
        op: A key of ``OPS``.
        size: Of the square images.
        training: Whether to take the step.

    Returns:
        ``sites`` rewritten; the largest relative differences in float64: of an exact op ``error`` (of a site),
        ``model`` (of an output) and ``fused`` (of one, both networks fused); of another op ``moved`` (how far it takes
        an output) and ``fused`` (how much further ``fuse()`` does); ``wrong``, what else there is, in words.
    """
    after = copy.deepcopy(before)
    try:
        surgeon.apply(after, OPS[op], size)
    except (surgeon.NoSiteError, surgeon.RefusedError):
        return None
    fused, x = fuse(after), images(size)
    old, new, folded = (list(tensors(run(model, x))) for model in (before, after, fused))
    if op in EXACT:
        found = {
            "error": max(site_errors(before, after, [(size, size)]).values()),
            "model": furthest(old, new),
            "fused": furthest(run(fuse(before), x), folded),  # of some, fuse() drops outputs
        }
    else:
        found = {"moved": furthest(old, new), "fused": furthest(new[0], folded[0])}
    wrong = [*_says_wrong(before, after), *_answers_wrong(old, new)]
    wrong += _learns_wrong(before, after, x) if training else ()
    wrong += _undone_wrong(before, after, fused)
    rounded = {name: float(f"{value:.1e}") for name, value in found.items()}
    return {"sites": surgeon.record(fused).count("rewritten"), **rounded, "wrong": wrong}


def fuse(model: nn.Module) -> nn.Module:
    """A copy, its norms folded by ultralytics' own code."""
    fused: nn.Module = copy.deepcopy(model).fuse(verbose=False)  # type: ignore[operator]
    return fused


def _says_wrong(before: nn.Module, after: nn.Module) -> Iterator[str]:
    if told(after) != told(before):
        yield "it says something else of itself"
    if layers := wrong_counts(after):
        yield f"np is wrong in {layers}"


def _answers_wrong(old: list[Tensor], new: list[Tensor]) -> Iterator[str]:
    if [t.shape for t in old] != [t.shape for t in new]:
        yield "it answers other shapes"
    if not all(bool(t.isfinite().all()) for t in new):
        yield "it answers values that are not finite"


def _learns_wrong(before: nn.Module, after: nn.Module, x: Tensor) -> Iterator[str]:
    """A new tensor gets a gradient, unless the stock layer gets none: a class branch that waits for texts."""
    stock, learner = learnt(before, x), learnt(after, x)
    for name in new_tensors(before, after):
        beside = stock.get(name.rpartition(".")[0] + ".weight")
        grad = learner[name]
        if (beside is None or beside.any()) and not (grad.isfinite().all() and grad.any()):
            yield f"'{name}' learns nothing"


def learnt(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """The gradient of each parameter in one training step of a copy; zeros where there is none."""
    learner = copy.deepcopy(model).train()
    answers = [answer for answer in tensors(learner(x)) if answer.requires_grad]
    torch.stack([answer.square().mean() for answer in answers]).sum().backward()
    return {name: torch.zeros(1) if p.grad is None else p.grad for name, p in learner.named_parameters()}


def _undone_wrong(before: nn.Module, after: nn.Module, fused: nn.Module) -> Iterator[str]:
    marks = versions_of(fused)
    try:
        surgeon.undo(fused)
        yield "a fused network is undone"
    except surgeon.RefusedError as error:
        if "norms were folded" not in str(error) or versions_of(fused) != marks:
            yield f"undoing a fused network: {error}"
    if not same(before, surgeon.undo(after)):
        yield "undo leaves something else"


def versions_of(model: nn.Module) -> list[tuple[str, int, int]]:
    """Which tensors a network holds, and how often each was written to."""
    return [(name, id(tensor), tensor._version) for name, tensor in model.state_dict(keep_vars=True).items()]


def same(one: nn.Module, other: nn.Module) -> bool:
    """Whether two networks are equal bit for bit, classes, modes and tags included."""
    parts = [[(n, type(m), m.training, getattr(m, "np", None)) for n, m in net.named_modules()] for net in (one, other)]
    a, b = one.state_dict(), other.state_dict()
    return parts[0] == parts[1] and list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)


def tensors(outputs: Any) -> Iterator[Tensor]:
    """Every tensor of what a network answers."""
    if isinstance(outputs, Tensor):
        yield outputs
    elif isinstance(outputs, (dict, list, tuple)):
        for part in outputs.values() if isinstance(outputs, dict) else outputs:
            yield from tensors(part)


def furthest(a: Any, b: Any) -> float:
    """The largest relative difference of two answers; infinite where their numbers of tensors differ."""
    one, other = list(tensors(a)), list(tensors(b))
    if len(one) != len(other):
        return float("inf")
    return max(relative(p.double(), q.double()) for p, q in zip(one, other, strict=True))


def told(model: Any) -> dict[str, Any]:
    """What a network of ultralytics' says of itself."""
    found = {name: getattr(model, name, None) for name in ("names", "yaml", "task", "save", "nc", "end2end")}
    stride = getattr(model, "stride", None)
    layers = [(layer.i, layer.f, layer.type) for layer in model.model]
    return {**found, "stride": None if stride is None else stride.tolist(), "layers": layers}


def wrong_counts(model: Any) -> list[int]:
    """The layers that tell a number of parameters, ``np``, they have not."""
    return [layer.i for layer in model.model if layer.np != sum(p.numel() for p in layer.parameters())]
