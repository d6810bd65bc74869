"""Locate: read-only passes over a recorded graph that list every site.

``locate(model)`` is ``unwrap -> record_forward -> sites_of``; each pass names one kind of site.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor, fx, nn

from surgeon.calls import lift
from surgeon.host import InputSize, input_sizes, unwrap
from surgeon.reduction import reduction, stride_before, total_strides
from surgeon.residual import residuals
from surgeon.site import Kind, Pair, Site, Sites
from surgeon.tracing import Trace, record_forward

SPATIAL = ("strided_conv", "strided_pool", "spatial_conv")
POOLS = (nn.MaxPool2d, nn.AvgPool2d, nn.LPPool2d)


def locate(model: nn.Module, input_size: InputSize = None) -> Sites:
    """List every site of ``model``: strided convs and pools, spatial convs, residual blocks and skips.

    The model is only read: its forward runs once on a skeleton of fake tensors.

    Args:
        model: Any module that takes one image tensor.
        input_size: An int, (H, W) or (C, H, W); by default what the model says of itself.

    Raises:
        RefusedError: When the model is wrapped (DDP, FSDP, compiled, scripted).
        TraceError: When its forward cannot run on such an image.

    Example:
        >>> import timm
        >>> sites = locate(timm.create_model("test_resnet"), 64)
        >>> sites.count("strided_conv"), sites.count("block")
        (4, 4)
    """
    model = unwrap(model)
    recorded = record_forward(model, input_sizes(model, input_size))
    return Sites(sites_of(recorded), type(model).__name__, recorded.input_size, recorded.notes)


def sites_of(recorded: Trace) -> list[Site]:
    """The sites of a recorded forward pass, in order of call."""
    nodes = list(recorded.graph.nodes)
    order = {node: i for i, node in enumerate(nodes)}
    aliases = _aliases(recorded.model)
    found: dict[str, Site] = {}
    spatial = {node: fact for node in nodes if (fact := _spatial(node, recorded))}
    totals = total_strides(recorded, {node: fact["stride"][0] for node, fact in spatial.items()})
    facts = [*spatial.items(), *residuals(recorded)]
    for node, fact in sorted(facts, key=lambda pair: order[pair[0]]):
        path = fact["path"]
        if path in found:
            found[path] = replace(found[path], calls=found[path].calls + 1)
            continue
        total, windows = totals[node], _features(node).shape[0]
        if fact["kind"] in SPATIAL:
            total = stride_before(node, totals)
        found[path] = Site(
            reduction=reduction((windows, *fact["in_shape"]), total, recorded.input_size),
            depth=round(order[node] / len(nodes), 4),
            aliases=aliases.get(path, (path,)),
            **fact,
        )
    return list(found.values())


def _aliases(model: nn.Module) -> dict[str, tuple[str, ...]]:
    names: dict[int, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(id(module), []).append(name)
    return {group[0]: tuple(group) for group in names.values()}


def _spatial(node: fx.Node, recorded: Trace) -> dict[str, Any] | None:
    """What a node is if it is a conv or pool of interest: the fields of its site."""
    if node.op == "call_module":
        module = recorded.model.get_submodule(str(node.target)) if _registered(node, recorded) else None
        path, via, type_name = str(node.target), "module", type(module).__name__
    elif node.op == "call_function" and node.meta["name"] in ("getitem", "conv2d", *_POOL_CALLS):
        module = lift(node, lambda attr: attr.meta["val"])
        path, type_name = function_path(node), node.meta["name"]
        via = "slice" if type_name == "getitem" else "function"
    else:
        return None
    kind = None if module is None else _kind(module)
    source, out = _source(node), _features(node)
    if module is None or kind is None or source is None or not isinstance(out, Tensor):
        return None
    shapes = {"in_shape": tuple(source.shape[1:]), "out_shape": tuple(out.shape[1:])}
    return {"path": path, "kind": kind, "type_name": type_name, "via": via, **shapes, **geometry(module)}


_POOL_CALLS = ("max_pool2d", "max_pool2d_with_indices", "avg_pool2d")


def function_path(node: fx.Node) -> str:
    """``owner:function:n`` of a functional call."""
    return f"{node.meta['owner']}:{node.meta['name']}:{node.meta['index']}"


def _registered(node: fx.Node, recorded: Trace) -> bool:
    return "<" not in str(node.target)


def _features(node: fx.Node) -> Any:
    """What a node answers; of a pool that returns its indices too, the features."""
    value = node.meta["val"]
    return value[0] if isinstance(value, tuple) else value


def _source(node: fx.Node) -> Tensor | None:
    """The 4-D tensor the node reads."""
    first = node.args[0] if node.args else next(iter(node.kwargs.values()), None)
    value = first.meta["val"] if isinstance(first, fx.Node) else None
    return value if isinstance(value, Tensor) and value.ndim == 4 else None


def _kind(module: nn.Module) -> Kind | None:
    if not isinstance(module, (nn.Conv2d, *POOLS)):
        return None
    strided = max(_stride(module)) > 1
    if isinstance(module, POOLS):
        return "strided_pool" if strided else None
    if strided:
        return "strided_conv"
    return "spatial_conv" if max(module.kernel_size) > 1 else None


def pair(value: Any) -> Pair:
    """Torch's int-or-pair as a pair; -1 for padding known by name only."""
    if isinstance(value, str):
        return (-1, -1)
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[-1]))


def _stride(module: nn.Module) -> Pair:
    """Of a pool without one it is the kernel size."""
    return pair(module.stride or module.kernel_size)


def geometry(module: nn.Module) -> dict[str, Any]:
    """Kernel size, stride, padding, dilation and groups of a conv or pool, as pairs."""
    same = any(cls.__name__.endswith("Same") for cls in type(module).__mro__)
    return {
        "kernel_size": pair(module.kernel_size),
        "stride": _stride(module),
        "padding": (-1, -1) if same else pair(getattr(module, "padding", 0)),
        "dilation": pair(getattr(module, "dilation", 1)),
        "groups": getattr(module, "groups", None),
    }


__all__ = ["function_path", "geometry", "locate", "pair", "sites_of"]
