"""The periods that a net's strides leave in whatever is measured against shifts: its cumulative strides.

Apart from the spectrum, which takes any periods.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx

from analysis.feature_layout import Layout, layout_of
from surgeon.host import InputSize, input_sizes, unwrap
from surgeon.locating import function_path, sites_of
from surgeon.reduction import total_strides
from surgeon.tracing import Trace, record_forward

STRIDED = ("strided_conv", "strided_pool")


def stride_periods(model: Any, input_size: InputSize = None) -> dict[int, str]:
    """The cumulative strides of a model, each with the first place that has it.

    A net that subsamples by 2 treats an image shifted by 2 pixels as the shifted image, but not one shifted by 1.

    Args:
        model: Any that ``surgeon.locate`` takes.
        input_size: Likewise.

    Returns:
        Of each stride in pixels, the smallest first, the path of the layer behind which features have it.

    Raises:
        SurgeonError: When the model cannot be recorded.

    Example:
        >>> from torch import nn
        >>> pools = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.MaxPool2d(2), nn.Conv2d(4, 4, 3))
        >>> stride_periods(pools, 32)
        {2: '0', 4: '1'}
    """
    module = unwrap(model)
    recorded = record_forward(module, input_sizes(module, input_size))
    found = dict[int, str]()
    for node, total in reductions(recorded).items():
        value = node.meta.get("val")
        shape = tuple(value.shape) if isinstance(value, Tensor) else ()
        layout = layout_of(shape, total, recorded.input_size[1:])
        if len(shape) == 4 and isinstance(layout, Layout) and layout.spatial:  # a head may view its answers as anything
            found.setdefault(total, _path(node))
    return {period: found[period] for period in sorted(found) if period > 1}


def _path(node: fx.Node) -> str:
    """Of the module or function that a node calls."""
    return function_path(node) if node.op == "call_function" else str(node.target)


def reductions(recorded: Trace) -> dict[fx.Node, int]:
    """The total stride behind each node of a recorded forward pass.

    Example:
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 2, stride=2), nn.ReLU())
        >>> list(reductions(record_forward(net, [(3, 8, 8)])).values())
        [1, 2, 2, 2]
    """
    sites = {site.path: site for site in sites_of(recorded) if site.kind in STRIDED}
    strides = {}
    for node in recorded.graph.nodes:
        if (path := _path(node)) in sites:
            strides[node] = max(sites[path].stride or (1, 1))
    return total_strides(recorded, strides)


__all__ = ["reductions", "stride_periods"]
