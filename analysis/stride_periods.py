"""The periods that a net's strides leave in whatever is measured against shifts: its cumulative strides.

Apart from the spectrum, which takes any periods.
"""

from __future__ import annotations

from typing import Any

from torch import fx

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
    totals, found = reductions(recorded), dict[int, str]()
    for site in sites_of(recorded):
        before = site.reduction * max(site.stride or (1, 1)) if site.kind in STRIDED else site.reduction
        found.setdefault(before, site.path)
    for node, total in totals.items():  # layers of surgery are no sites
        if node.op == "call_module" and "<" not in str(node.target) and node.meta["val"] is not None:
            found.setdefault(total, str(node.target))
    return {period: found[period] for period in sorted(found) if period > 1}


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
        path = str(node.target) if node.op == "call_module" else ""
        if node.op == "call_function":
            path = function_path(node)
        if path in sites:
            strides[node] = max(sites[path].stride or (1, 1))
    return total_strides(recorded, strides)


__all__ = ["reductions", "stride_periods"]
