"""Sites: the places of a model where an op can apply, as plain facts.

A site is a fact, "late" is a choice: nothing here decides; :class:`surgeon.Select` does.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, overload

from surgeon.table import by, table

Kind = Literal["strided_conv", "strided_pool", "spatial_conv", "block", "skip"]
Via = Literal["module", "function", "slice"]
Pair = tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """One place an op can apply to, seen once however often it is called.

    Args:
        path: Fully qualified module name; of a functional site ``owner:function:n``, the n-th call of that function
            in the forward of module ``owner``.
        kind: ``strided_conv``, ``strided_pool``, ``spatial_conv`` (stride 1, kernel over 1), ``block`` (a module that
            adds its input, or a projection of it, to what it computed) or ``skip`` (the edge that is added).
        type_name: Class or function name; of a skip ``identity`` or ``projection``.
        kernel_size: Height and width; None where there is no kernel, like the next four.
        stride: Height and width.
        padding: Height and width; -1 stands for padding that depends on the input size (TensorFlow's "same").
        dilation: Height and width.
        groups: Of a conv.
        in_shape: Shape of the input without the batch, as the model holds it (C, H, W in most).
        out_shape: Shape of the output without the batch.
        reduction: Input size of the model over the size at the site's input.
        depth: 0 at the input to 1 at the output, by order of call.
        calls: How often one forward pass runs it.
        aliases: Every name the module is registered under.
        via: ``module``, ``function`` or ``slice``.
    """

    path: str
    kind: Kind
    type_name: str
    kernel_size: Pair | None = None
    stride: Pair | None = None
    padding: Pair | None = None
    dilation: Pair | None = None
    groups: int | None = None
    in_shape: tuple[int, ...]
    out_shape: tuple[int, ...]
    reduction: int
    depth: float
    calls: int = 1
    aliases: tuple[str, ...] = ()
    via: Via = "module"

    @property
    def owner(self) -> str:
        """Path of the module whose forward holds the site; of a module site its own path."""
        return self.path.split(":")[0]


class Sites(Sequence[Site]):
    """The sites of a model in order of call; prints as a table.

    Example:
        >>> import timm, surgeon
        >>> sites = surgeon.locate(timm.create_model("test_resnet"))
        >>> [site.path for site in sites if site.kind == "strided_conv"][:2]
        ['conv1.0', 'layer2.0.conv1']
    """

    def __init__(self, sites: Sequence[Site], model: str, input_size: tuple[int, ...], notes: Sequence[str] = ()):
        self._sites, self.model, self.input_size, self.notes = tuple(sites), model, tuple(input_size), tuple(notes)

    @overload
    def __getitem__(self, index: int) -> Site: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Site, ...]: ...
    def __getitem__(self, index: int | slice) -> Site | tuple[Site, ...]:
        return self._sites[index]

    def __len__(self) -> int:
        return len(self._sites)

    def __iter__(self) -> Iterator[Site]:
        return iter(self._sites)

    def count(self, value: Any) -> int:
        """How many sites are of kind ``value``."""
        return sum(site.kind == value for site in self._sites)

    def to_json(self) -> str:
        """The sites, the model's name and the input size as JSON text."""
        rows = [asdict(site) for site in self._sites]
        return json.dumps({"model": self.model, "input_size": self.input_size, "notes": self.notes, "sites": rows})

    def __str__(self) -> str:
        counts = Counter(site.kind for site in self._sites)
        title = f"{self.model} at {by(self.input_size)}: " + ", ".join(f"{n} {kind}" for kind, n in counts.items())
        head = ("path", "kind", "type", "kernel", "stride", "in", "out", "reduction", "depth")
        rows = [
            (
                site.path + (f" (x{site.calls})" if site.calls > 1 else ""),
                site.kind,
                site.type_name,
                by(site.kernel_size),
                by(site.stride),
                by(site.in_shape),
                by(site.out_shape),
                site.reduction,
                f"{site.depth:.2f}",
            )
            for site in self._sites
        ]
        text = table(head, rows, right=frozenset({"reduction", "depth"}))
        return "\n".join([title, text, *(f"note: {note}" for note in self.notes)])

    __repr__ = __str__
