"""Record one forward pass of a model as an fx graph whose nodes carry shapes; no arithmetic is done.

The model's own Python code runs on a skeleton: a deep copy whose parameters, buffers and input are fake tensors. Each
fake tensor stands for the node that made it, so sizes, lengths, iteration and control flow are resolved as in a real
run, and the model itself is only read. Such a graph has batch, size and mode baked in: it is looked at, never executed.
"""

from __future__ import annotations

import itertools
import logging
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.node import map_aggregate

from surgeon.errors import TraceError
from surgeon.recorder import ONE_AT_A_TIME, Recorder
from surgeon.skeleton import FAKE_MODE, skeleton


@dataclass
class Trace:
    """A recorded forward pass.

    Args:
        params: The number of parameters at that time.
        passed: Of each call of a module, by its path: how many arguments were given by position, and which by name.

    Node meta: ``val`` (the fake output), ``name`` (of the function, or the module's path), ``order``, ``owner`` (path
    of the module whose code made the call), ``run`` (how many times that module had run before), ``index`` (how many
    calls of the same function this run had made before), ``macs`` (multiply-adds, one each), ``returned_by`` (paths of
    the modules whose output it is, where they are no nodes).
    """

    model: nn.Module
    graph: fx.Graph
    input_size: tuple[int, int, int]
    notes: tuple[str, ...]
    params: int
    passed: dict[str, list[tuple[int, tuple[str, ...]]]]

    @property
    def outputs(self) -> Any:
        """The fake output of the model, as the model returns it."""
        return self.graph.output_node().meta["val"]

    def macs(self, path: str = "") -> int:
        """Multiply-adds of one image in the module ``path`` and below; of the whole model by default."""
        return sum(node.meta.get("macs", 0) for node in self.graph.nodes if within(node, path))

    def activation_bytes(self) -> int:
        """Bytes of every intermediate output of one image, as a training step would at most keep."""
        tensors = (node.meta["val"] for node in self.graph.nodes if node.op.startswith("call_"))
        return sum(t.numel() * t.element_size() for t in tensors if isinstance(t, Tensor))


def calls_of(recorded: Trace, besides: Collection[str] = ()) -> Counter[tuple[str, str, str]]:
    """How often each owner calls each function with which plain arguments: sizes its code has read are among them.

    Args:
        recorded: The trace.
        besides: Paths of owners left out.
    """
    nodes = [n for n in recorded.graph.nodes if n.op == "call_function" and n.meta["owner"] not in besides]
    plain = [repr(map_aggregate((n.args, n.kwargs), lambda a: "" if isinstance(a, fx.Node) else a)) for n in nodes]
    return Counter((n.meta["owner"], n.meta["name"], given) for n, given in zip(nodes, plain, strict=True))


def within(node: fx.Node, path: str) -> bool:
    """Whether the node is the module at ``path``, or a call made by it or inside it."""
    own = str(node.target) if node.op == "call_module" else node.meta.get("owner", "")
    return path in ("", own) or own.startswith(path + ".")


@contextmanager
def _quiet() -> Iterator[None]:
    """Torch logs every operation that fails on fake tensors; the error raised says it once."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def record_forward(model: nn.Module, sizes: Sequence[tuple[int, int, int]]) -> Trace:
    """Trace a :func:`skeleton` of ``model`` on an image of the first of ``sizes`` that runs.

    Raises:
        TraceError: When none runs; it tells why the first did not.
    """
    first: TraceError | None = None
    for size in sizes:
        try:
            return trace(skeleton(model), size)
        except TraceError as error:
            first = first or error
    raise first or TraceError("no input size was given")


def trace(model: nn.Module, input_size: tuple[int, int, int]) -> Trace:
    """Record the forward pass of a :func:`skeleton` on one image of ``input_size`` (C, H, W).

    Raises:
        TraceError: When the forward fails on an image of that size.
    """
    recorder = Recorder(model)
    fake: FakeTensorMode = model.__dict__[FAKE_MODE]
    first = next(itertools.chain(model.parameters(), model.buffers()), torch.empty(0))
    dtype = first.dtype if first.is_floating_point() else torch.get_default_dtype()
    with fake:
        image = torch.empty(1, *input_size, dtype=dtype, device=first.device)
    node = recorder.graph.placeholder("x")
    node.meta.update(val=image, owner="", order=0)
    recorder.bind(image, node)
    try:
        with ONE_AT_A_TIME, _quiet(), fake, recorder.recording(model):
            out = model(image)
    except TraceError:
        raise
    except Exception as error:
        where = f", it fails in '{recorder.failed}'" if recorder.failed else ""
        raise TraceError(
            f"cannot run {type(model).__name__} on an image of {input_size}{where}: {type(error).__name__}: {error}; "
            "pass the input_size the model was built for, or operate on the part that runs"
        ) from error
    recorder.graph.output(recorder.arguments(out)).meta["val"] = out
    params = sum(p.numel() for p in model.parameters())
    return Trace(model, recorder.graph, input_size, tuple(dict.fromkeys(recorder.notes)), params, recorder.passed)
