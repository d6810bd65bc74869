"""The op ``gap``: global average pooling of one or several depths, concatenated, in front of a new classifier.

Translation-invariant CNNs, arXiv:2604.27870: what a pooled map says of an image does not depend on where things are.
The released code taps VGG-16 behind its max-pools; here any depth of any timm classifier that holds maps is tapped.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from surgeon.edit import Append, Edit, SetAttribute, Swap, untouchable
from surgeon.errors import RefusedError
from surgeon.freezing import Derive, Freeze
from surgeon.op import AbstractOp, Decision, Refused, Rewrite, register_op
from surgeon.ops.drawing import check_seed
from surgeon.ops.layout import channels_last
from surgeon.settings import complain
from surgeon.site import Kind, Site
from surgeon.tracing import Trace, trace, within

Depth = int | str
LAST = "last"


@register_op
@dataclass(frozen=True)
class GAP(AbstractOp):
    """Tap depths, pool each over all positions, concatenate, classify anew.

    What lies between the features and the old classifier (norms, fully connected layers) goes. The site is the
    classifier.

    Args:
        depths: What is tapped: "last", the output of ``forward_features``; a number, that entry of ``feature_info``;
            or the path of a module.
        freeze: Whether the backbone is frozen, statistics of its norms included, so that the classifier alone learns.
        seed: Of the new classifier's weights.

    Raises:
        RecipeError: When a setting has no such value.

    Example:
        >>> import surgeon
        >>> model = surgeon.create_model("test_resnet", {"gap": {"depths": [1, 2, "last"]}}, num_classes=7)
        >>> model.get_classifier()
        Linear(in_features=176, out_features=7, bias=True)
    """

    name: ClassVar[str] = "gap"
    kinds: ClassVar[frozenset[Kind]] = frozenset({"block"})

    depths: tuple[Depth, ...] = (LAST,)
    freeze: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        problems = [] if self.depths else [("depths", "is empty; name at least one, such as 'last'")]
        if len(set(self.depths)) < len(self.depths):
            problems.append(("depths", f"is {list(self.depths)}, which names one twice"))
        complain(problems, self.name)
        check_seed(self.seed, self.name)

    @property
    def exact(self) -> bool:
        """Never: the classifier is new."""
        return False

    def candidates(self, sites: Sequence[Site], recorded: Trace) -> list[Site]:
        """The classifier."""
        found = _classifier(recorded.model)
        if found is None:
            raise RefusedError(
                f"op 'gap' needs a timm classifier (forward_features, forward_head, get_classifier), which "
                f"{type(recorded.model).__name__} is not, or has taken away (num_classes=0)"
            )
        path, layer = found
        if not isinstance(recorded.outputs, Tensor) or recorded.outputs.ndim != 2:
            raise RefusedError("op 'gap' needs a model that answers logits (N, classes), one tensor")
        shape = (int(getattr(layer, "in_features", 0) or getattr(layer, "in_channels", 0)),)
        out = (recorded.outputs.shape[1],)  # a 1x1 conv or a small net may classify, too
        kind = {"kind": "block", "type_name": type(layer).__name__, "reduction": 1, "depth": 1.0}
        return [Site(path=path, in_shape=shape, out_shape=out, **kind)]  # type: ignore[arg-type]

    def decide(self, site: Site, recorded: Trace) -> Decision:
        """Tap, exchange the classifier, let the rest of the head go, freeze."""
        model = recorded.model
        if reason := untouchable(model.get_submodule(site.path)):
            return Refused(reason)
        features = _features(recorded)
        taps = [_tap(depth, recorded, features) for depth in self.depths]
        if twice := next((i for i, tap in enumerate(taps) if tap in taps[:i]), None):
            return Refused(f"depths {self.depths[taps.index(taps[twice])]!r} and {self.depths[twice]!r} are one module")
        width = sum(tap.width for tap in taps)
        classes = site.out_shape[0]
        head = TapHead(site.path, tuple(taps), width)
        edits: list[Edit] = [Swap(site.path, partial(_linear, width, classes, self.seed))]
        gone = _rest_of_head(site.path, recorded, features)
        edits += [Swap(path, lambda _module: nn.Identity()) for path in gone]
        edits += [Append(tap.path, partial(_make_tap, tap)) for tap in taps if tap.path]
        edits += [Derive("", head), *_sizes(model, width)]
        edits += [Freeze(path, lambda _module: {}) for path in _backbone(model, site.path)] if self.freeze else []
        words = f"{len(taps)} depths pooled, {width} features -> {classes} classes" + ", backbone frozen" * self.freeze
        return Rewrite(edits, words + (f"; without {', '.join(gone)}" if gone else ""))


@dataclass(frozen=True)
class TapPoint:
    """Where features are tapped: ``path`` of the module, "" for what ``forward_head`` is given."""

    path: str
    width: int
    axes: tuple[int, int]


@dataclass(frozen=True)
class TapHead:
    """A model whose ``forward_head`` classifies what the taps have pooled."""

    classifier: str
    taps: tuple[TapPoint, ...]
    width: int
    child = ""

    def members(self, module: nn.Module) -> dict[str, Any]:
        """``forward_head`` and ``reset_classifier``."""
        classifier, taps, width = self.classifier, self.taps, self.width

        def forward_head(self: nn.Module, x: Tensor, pre_logits: bool = False) -> Tensor:
            """Concatenate what the last forward_features pooled, drop out, classify."""
            pooled = [_pooled(self, tap) if tap.path else x.mean(tap.axes) for tap in taps]
            x = F.dropout(torch.cat(pooled, 1), float(getattr(self, "drop_rate", 0.0) or 0.0), self.training)
            return x if pre_logits else self.get_submodule(classifier)(x)  # type: ignore[no-any-return]

        def reset_classifier(self: nn.Module, num_classes: int, global_pool: str | None = None) -> None:
            """Draw a new classifier; what is pooled stays."""
            if global_pool not in (None, "avg"):
                raise RefusedError(f"global_pool={global_pool!r}: op 'gap' averages; surgeon.undo(model) takes it back")
            self.num_classes = num_classes  # type: ignore[assignment]
            old = next(p for p in self.parameters() if p.is_floating_point())
            new = nn.Linear(width, num_classes, device=old.device, dtype=old.dtype) if num_classes else nn.Identity()
            self.set_submodule(classifier, new.train(self.training), strict=True)

        return {"forward_head": forward_head, "reset_classifier": reset_classifier}


def _pooled(model: nn.Module, tap: TapPoint) -> Tensor:
    held: Held = model.get_submodule(tap.path).get_submodule(Append.name).held  # type: ignore[assignment]
    if held.value is None:
        raise RefusedError(f"'{tap.path}' has pooled nothing yet: run forward_features before forward_head")
    return held.value


@dataclass
class Held:
    """What a tap saw last."""

    value: Tensor | None = field(default=None, repr=False)


class Tap2d(nn.Module):
    """Passes features on and keeps their mean over all positions until the next forward pass.

    Args:
        axes: Of the positions: (2, 3), or (1, 2) with channels last.

    Shape:
        - Input: (N, C, H, W), or (N, H, W, C)
        - Output: the same

    Example:
        >>> tap = Tap2d((2, 3))
        >>> tap(torch.ones(2, 3, 4, 4)).shape, tap.held.value.shape
        (torch.Size([2, 3, 4, 4]), torch.Size([2, 3]))
    """

    def __init__(self, axes: tuple[int, int]) -> None:
        super().__init__()
        self.axes, self.held = axes, Held()

    def forward(self, x: Tensor) -> Tensor:
        """Pool, keep, pass on."""
        self.held.value = x.mean(self.axes)
        return x

    def __getstate__(self) -> dict[str, Any]:
        """What is kept belongs to one forward pass: copies and pickles do without."""
        return {**self.__dict__, "held": Held()}


def _classifier(model: nn.Module) -> tuple[str, nn.Module] | None:
    has_parts = all(callable(getattr(model, name, None)) for name in ("forward_features", "forward_head"))
    ask = getattr(model, "get_classifier", None)
    layer = ask() if has_parts and callable(ask) else None
    path = next((name for name, module in model.named_modules() if module is layer), None)
    whole = isinstance(layer, nn.Module) and any(True for _ in layer.parameters())
    return (path, layer) if path and whole and isinstance(layer, nn.Module) else None


def _features(recorded: Trace) -> Trace:
    """The forward pass up to what ``forward_head`` is given."""
    model = recorded.model
    model.__dict__["forward"] = model.forward_features
    try:
        return trace(model, recorded.input_size)
    finally:
        del model.__dict__["forward"]


def _tap(depth: Depth, recorded: Trace, features: Trace) -> TapPoint:
    """Where ``depth`` is, and how wide."""
    if depth == LAST:
        return _point("", features.graph.output_node().args[0], features, depth)
    path = depth
    if isinstance(depth, int):
        info = getattr(recorded.model, "feature_info", None)
        entries = info if isinstance(info, list) else []
        if not -len(entries) <= depth < len(entries):
            raise RefusedError(f"depth {depth} is none of the {len(entries)} entries of feature_info; name a module")
        path = str(entries[depth]["module"])
    if path not in dict(recorded.model.named_modules()):
        raise RefusedError(f"depth {depth!r}: the model has no module '{path}'")
    nodes = [n for n in features.graph.nodes if n.target == path or path in n.meta.get("returned_by", ())]
    if not nodes:
        raise RefusedError(f"depth {depth!r}: '{path}' answers no tensor on the way to the classifier")
    return _point(_innermost(str(path), recorded.model), nodes[-1], features, depth)


def _innermost(path: str, model: nn.Module) -> str:
    """A chain of modules answers what its last one answers."""
    module = model.get_submodule(path)
    while isinstance(module, nn.Sequential) and len(module):
        path = f"{path}.{list(module._modules)[-1]}"
        module = model.get_submodule(path)
    return path


def _point(path: str, node: Any, features: Trace, depth: Depth) -> TapPoint:
    value = node.meta["val"] if isinstance(node, fx.Node) else node
    if not isinstance(value, Tensor) or value.ndim != 4:
        shape = tuple(value.shape[1:]) if isinstance(value, Tensor) else type(value).__name__
        raise RefusedError(f"depth {depth!r} holds {shape}, no map to pool")
    last = channels_last(node, features)
    return TapPoint(path, value.shape[3 if last else 1], (1, 2) if last else (2, 3))


def _make_tap(tap: TapPoint, _module: nn.Module) -> nn.Module:
    return Tap2d(tap.axes)


def _linear(width: int, classes: int, seed: int, old: nn.Module) -> nn.Linear:
    """Drawn as ``nn.Linear`` draws, on the device and in the precision of the old classifier."""
    like = next(old.parameters())
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        new = nn.Linear(width, classes, device=like.device, dtype=like.dtype)
        nn.init.uniform_(new.weight, -1 / math.sqrt(width), 1 / math.sqrt(width))
    return new


def _rest_of_head(classifier: str, recorded: Trace, features: Trace) -> list[str]:
    """Modules with parameters that only the head runs, the outermost of each, the classifier left out."""
    model = recorded.model
    body = [node for node in features.graph.nodes if node.op != "get_attr"]
    gone: list[str] = []
    for path, module in model.named_modules():
        inside = any(path.startswith(f"{other}.") for other in gone)
        holds = not path or f"{classifier}.".startswith(f"{path}.") or path.startswith(f"{classifier}.")
        if inside or holds or not any(True for _ in module.parameters()):
            continue
        runs = any(within(node, path) for node in recorded.graph.nodes if node.op != "get_attr")
        if runs and not any(within(node, path) for node in body):
            gone.append(path)
    return gone


def _backbone(model: nn.Module, classifier: str) -> list[str]:
    """The outermost modules with parameters that do not hold the classifier."""
    found: list[str] = []
    for path, module in model.named_modules():
        inside = any(path.startswith(f"{other}.") for other in found)
        holds = not path or f"{classifier}.".startswith(f"{path}.") or path.startswith(f"{classifier}.")
        if not inside and not holds and any(True for _ in module.parameters()):
            found.append(path)
    return found


def _sizes(model: nn.Module, width: int) -> list[Edit]:
    """Timm's number for what the classifier takes."""
    name = "head_hidden_size"
    return [SetAttribute("", name, partial(_take, width))] if hasattr(model, name) else []


def _take(new: int, _old: Any) -> int:
    return new
