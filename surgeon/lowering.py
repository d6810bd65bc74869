"""Lower: a copy for inference in which space-to-depth and conv are one plain strided conv again."""

from __future__ import annotations

import copy
from functools import partial

from torch import fx, nn

from surgeon.change import Change, Record
from surgeon.edit import Append, Reclass, Swap, perform, revert, twin
from surgeon.errors import TraceError
from surgeon.following import follow_modes
from surgeon.host import Size, grid_of, host_of, input_sizes, unwrap
from surgeon.ledger import Ledger
from surgeon.locating import pair
from surgeon.ops.conv_spd import POINTWISE, SpaceToDepth
from surgeon.ops.spd_fold import one_conv
from surgeon.recorder import of_surgery
from surgeon.site import Pair
from surgeon.skeleton import LEDGER
from surgeon.tracing import Trace, calls_of, record_forward

KEEPS_ZERO = frozenset(("relu", "relu6", "silu", "gelu", "mish", "tanh", "hardswish", "leaky_relu", "elu"))


def lower(model: nn.Module) -> nn.Module:
    """A copy of ``model`` of the same function to rounding at every size, in the cheapest standard layers.

    A trained SPD-Conv is a strided conv with a larger kernel; folded back it runs as one call. ``record(copy)`` lists
    what was folded and, as refused, what stays and why. The copy is for inference: it cannot be undone.

    Of a detector of ultralytics' each becomes one plain conv, its kernel completed with zeros, and other
    space-to-depth ``PixelUnshuffle``, for images of the sizes that ultralytics makes: it fuses and exports. Where
    nothing stays, ``lower(yolo).save("stock.pt")`` writes an ordinary checkpoint for people without this library.

    Args:
        model: An operated model, or ``YOLO`` object; it is not touched.

    Returns:
        A copy of the same kind. A ``YOLO`` object in which something stays refuses to save, train and load.

    Raises:
        RefusedError: When the model is wrapped.

    Example:
        >>> import surgeon
        >>> model = surgeon.create_model("test_resnet", "spd")
        >>> surgeon.record(surgeon.lower(model)).count("rewritten")
        8
    """
    module = unwrap(model)
    lowered = copy.deepcopy(module)
    follow_modes(lowered, module)  # torch copies graph modules into training mode
    ledger = Ledger.of(lowered)
    lowered.__dict__.pop(LEDGER, None)
    size: Size = ledger.input_size if ledger else input_sizes(lowered)[0]
    before, grid = record_forward(module, [size]), grid_of(module)
    changes = [_fold_readers(lowered, path, before, grid) for path in rearranged(lowered)]
    changes += [_lower_layer(lowered, path, layer, grid) for path, layer in lowerable(lowered)]
    after = record_forward(lowered, [size])
    changes = [_with_macs(change, before.macs(change.path), after.macs(change.path)) for change in changes]
    record = Record(
        changes=tuple(changes),
        model=type(lowered).__name__,
        input_size=size,
        params=(before.params, after.params),
        macs=(before.macs(), after.macs()),
        activations=(before.activation_bytes(), after.activation_bytes()),
    )
    host = host_of(model)
    answer = lowered if host is None else host.around(model, lowered)
    Ledger(record, size, {}, None, {}).hang_on(answer)
    return answer


def lowerable(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Path and module of every layer that knows how to fold itself, or says that it cannot."""
    own = [(path, m) for path, m in model.named_modules() if of_surgery(m) and not isinstance(m, SpaceToDepth)]
    return [(path, m) for path, m in own if not any(path.startswith(f"{other}.") for other, _ in own)]


def _lower_layer(model: nn.Module, path: str, layer: nn.Module, grid: int | None) -> Change:
    fold = getattr(layer, "lower", None)
    folded: nn.Module | None = fold() if fold is not None else None
    folded = folded if folded is None or grid is None else one_conv(folded)
    count = sum(p.numel() for p in layer.parameters())
    if folded is None:
        reason = f"{type(layer).__name__} has no standard layer that is equal at every input size"
        return Change(path=path, op="lower", status="refused", reason=reason, params=(count, count))
    perform(model, [Swap(path, partial(_keep, folded))])
    after = sum(p.numel() for p in folded.parameters())
    reason = f"{type(layer).__name__} -> {_names(folded)}"
    return Change(path=path, op="lower", status="rewritten", reason=reason, params=(count, after))


def rearranged(model: nn.Module) -> list[str]:
    """Paths of the modules behind which "conv-spd" put space-to-depth."""
    return [path for path, m in model.named_modules() if isinstance(getattr(m, Append.name, None), SpaceToDepth)]


def _fold_readers(model: nn.Module, path: str, recorded: Trace, grid: int | None) -> Change:
    """Space-to-depth read by stride-1 convs only: each becomes a strided conv on the features before it."""
    module = model.get_submodule(path)
    block: Pair = module.get_submodule(Append.name).block  # type: ignore[assignment]
    names = (f"{path}.{Append.name}", path)  # a norm is one node with what is appended to it
    node = next(n for n in recorded.graph.nodes if n.op == "call_module" and n.target in names)
    readers = _readers(node, model)
    odd = [str(r.meta.get("name", "the output")) for r in readers if not _foldable(r, model, recorded)]
    if odd or not readers:
        reason = f"space-to-depth is read by '{odd[0] if odd else 'the output'}', which is no plain conv"
        return _unshuffled(model, path, node, recorded, grid) or Change(
            path=path, op="lower", status="refused", reason=reason
        )
    targets = [str(reader.target) for reader in readers]
    again = Reclass(path, Append.name).revert(model)
    log = perform(model, [Swap(target, partial(_strided, block, grid is not None)) for target in targets])
    if not _runs_alike(model, recorded):
        revert(model, log)
        again()
        return Change(path=path, op="lower", status="refused", reason="code of the model reads the size of its output")
    count = sum(p.numel() for target in targets for p in model.get_submodule(target).parameters())
    kind = "Conv2d" if grid is not None else "ZeroPad2d + Conv2d"
    reason = f"space-to-depth and {', '.join(targets)} -> {kind}"
    return Change(path=path, op="lower", status="rewritten", reason=reason, params=(count, count))


def _unshuffled(model: nn.Module, path: str, node: fx.Node, recorded: Trace, grid: int | None) -> Change | None:
    """Space-to-depth as torch's own layer, which no size may leave a rest; None where one might."""
    (height, width), after = model.get_submodule(f"{path}.{Append.name}").block, node.meta["val"].shape[2:]  # type: ignore[misc]
    reductions = [-(-side // n) for side, n in zip(recorded.input_size[1:], after, strict=True)]
    if grid is None or height != width or any(grid % reduction for reduction in reductions):
        return None
    Reclass(path, Append.name).revert(model)
    perform(model, [Swap(path, lambda conv: nn.Sequential(conv, nn.PixelUnshuffle(height)))])
    reason = f"space-to-depth -> PixelUnshuffle, for sides that are multiples of {grid}"
    return Change(path=path, op="lower", status="rewritten", reason=reason)


def _runs_alike(model: nn.Module, recorded: Trace) -> bool:
    """Whether functions still get the numbers they got: code may hand on the size of a map that grew."""
    besides = rearranged(recorded.model)
    try:
        return calls_of(record_forward(model, [recorded.input_size]), besides) == calls_of(recorded, besides)
    except TraceError:
        return False


def _readers(node: fx.Node, model: nn.Module) -> list[fx.Node]:
    """What reads ``node``, seen through activations and identities.

    Only activations with f(0) = 0: then the zeros that complete an odd size stay zeros.
    """
    found: list[fx.Node] = []
    for user in node.users:
        through = user.meta.get("name") in KEEPS_ZERO
        if user.op == "call_module":
            module = model.get_submodule(str(user.target))
            through = isinstance(module, (nn.Identity, *POINTWISE)) and not isinstance(module, nn.Sigmoid)
        found += _readers(user, model) if through else [user]
    return found


def _foldable(node: fx.Node, model: nn.Module, recorded: Trace) -> bool:
    if node.op != "call_module" or sum(n.target == node.target for n in recorded.graph.nodes) > 1:
        return False
    conv = model.get_submodule(str(node.target))
    plain = type(conv) is nn.Conv2d and conv.padding_mode == "zeros" and not isinstance(conv.padding, str)
    return plain and conv.dilation == (1, 1)


def strided(block: Pair, conv: nn.Conv2d) -> nn.Module:
    """A conv over blocks as a strided conv over pixels: equal at every size, odd ones included.

    Example:
        >>> import torch
        >>> from surgeon.ops.conv_spd import POINTWISE, SpaceToDepth
        >>> conv, x = nn.Conv2d(12, 4, 3, padding=1), torch.rand(1, 3, 7, 8)
        >>> bool(torch.allclose(strided((2, 2), conv)(x), conv(SpaceToDepth((2, 2))(x)), atol=1e-6))
        True
    """
    (bh, bw), (kh, kw), (ph, pw) = block, conv.kernel_size, pair(conv.padding)
    o, c = conv.out_channels, conv.weight.shape[1] // (bh * bw)
    weight = conv.weight.detach().view(o, c, bh, bw, kh, kw).permute(0, 1, 4, 2, 5, 3)  # (o, c, kh, bh, kw, bw)
    new = twin(conv)
    new.weight = nn.Parameter(weight.reshape(o, c, kh * bh, kw * bw), conv.weight.requires_grad)
    new.in_channels, new.kernel_size = c * conv.groups, (kh * bh, kw * bw)  # type: ignore[assignment]
    new.stride = (conv.stride[0] * bh, conv.stride[1] * bw)  # type: ignore[assignment]
    new.padding = (0, 0)  # type: ignore[assignment]
    pads = (pw * bw, pw * bw + bw - 1, ph * bh, ph * bh + bh - 1)
    return nn.Sequential(nn.ZeroPad2d(pads), new)


def _strided(block: Pair, single: bool, conv: nn.Conv2d) -> nn.Module:
    folded = strided(block, conv)
    return one_conv(folded) if single else folded


def _keep(folded: nn.Module, _old: nn.Module) -> nn.Module:
    return folded


def _names(module: nn.Module) -> str:
    parts = list(module.children()) if isinstance(module, nn.Sequential) else [module]
    return " + ".join(type(part).__name__ for part in parts)


def _with_macs(change: Change, before: int, after: int) -> Change:
    return Change(
        path=change.path,
        op=change.op,
        status=change.status,
        reason=change.reason,
        params=change.params,
        macs=(before, after),
    )
