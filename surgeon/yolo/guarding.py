"""Networks operated without the object that may hold them: what would lose their surgery fails in words.

Apart from the objects because a network cannot know who holds it: ultralytics' trainers would build it anew from its
yaml, and its checkpoints would make stock code look for a package to install.
"""

from __future__ import annotations

import copy
from typing import Any

from torch import nn

from surgeon.errors import RefusedError

HINT = "operate on the YOLO object itself, surgeon.apply(yolo, ...), or load it by surgeon.load"


class Alone(dict[str, Any]):
    """The yaml of such a network. Copied with the network it is a dict like any other.

    Example:
        >>> copy.deepcopy([Alone(nc=3)])[0] == {"nc": 3}
        True
    """

    def __deepcopy__(self, memo: dict[int, Any]) -> Alone:
        if not memo:  # copied by itself, as ultralytics does to build a network
            raise RefusedError(f"an operated network would be built anew from its yaml, without its surgery: {HINT}")
        return Alone(copy.deepcopy(dict(self), memo))

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise RefusedError(
            "cannot pickle a network of ultralytics' that was operated by itself: stock code that opens the file would "
            f"try to install a package of the name of its layers; write it by surgeon.save, or {HINT}"
        )


def stand_guard(network: nn.Module) -> None:
    """Let what would lose the surgery of ``network`` fail."""
    if isinstance(yaml := getattr(network, "yaml", None), dict):
        network.yaml = Alone(yaml)  # type: ignore[assignment]


def stand_down(network: nn.Module) -> None:
    """Give ``network`` a plain yaml again: it was undone, or an object keeps its surgery."""
    if isinstance(yaml := getattr(network, "yaml", None), Alone):
        network.yaml = dict(yaml)  # type: ignore[assignment]
