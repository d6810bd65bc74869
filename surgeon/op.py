"""What an op is: a rule that refuses a site, leaves it, or says which edits rewrite it. An instance is its settings."""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, TypeVar

from torch import Tensor, fx, nn

from surgeon.calls import lift
from surgeon.derived import HOWS, InsteadOf, OnOperand, why_not_derived
from surgeon.edit import Edit, OnEdge, Swap, SwapCall, free_child, untouchable
from surgeon.errors import RecipeError, RefusedError
from surgeon.owncode import is_call, own_graph, passed
from surgeon.recorder import strided_slice
from surgeon.residual import residual_of
from surgeon.settings import read_settings
from surgeon.site import Kind, Site
from surgeon.tracing import Trace


@dataclass(frozen=True)
class Refused:
    """The op declines the site."""

    reason: str


@dataclass(frozen=True)
class Unchanged:
    """The op would leave the identical function."""

    reason: str


@dataclass(frozen=True)
class Rewrite:
    """The op rewrites the site by these edits; ``reason`` says what it becomes."""

    edits: Sequence[Edit]
    reason: str


Decision = Rewrite | Refused | Unchanged


@dataclass(frozen=True)
class AbstractOp(abc.ABC):
    """One rewrite rule; a subclass is final, frozen, and its fields are its settings.

    Class attributes: ``name`` (as recipes write it) and ``kinds`` (the sites it applies to).
    """

    name: ClassVar[str]
    kinds: ClassVar[frozenset[Kind]]

    def __post_init__(self) -> None:
        read_settings(self, self.name)

    @property
    def one_at_a_time(self) -> bool:
        """Whether the model is traced anew after each site, because one rewrite changes what the next one sees."""
        return False

    @property
    @abc.abstractmethod
    def exact(self) -> bool:
        """Whether the rewritten model computes the same function in evaluation mode before any training."""

    @abc.abstractmethod
    def decide(self, site: Site, recorded: Trace) -> Decision:
        """What to do at ``site``. Pure: neither the model nor its skeleton is touched."""

    def decide_all(self, sites: Sequence[Site], recorded: Trace, units: Sequence[str]) -> list[tuple[Site, Decision]]:
        """What to do at all ``sites`` selected: each by itself, unless an op decides for several together.

        Args:
            sites: Those selected, in order of call.
            recorded: The trace they were found in.
            units: Paths of the units of the whole model.
        """

        def decision(site: Site) -> Decision:
            try:
                return self.decide(site, recorded)
            except RefusedError as error:
                return Refused(str(error))

        return [(site, decision(site)) for site in sites]

    def candidates(self, sites: Sequence[Site], recorded: Trace) -> list[Site]:
        """Those of ``sites`` the op takes; an op of a place of its own, such as the classifier, names it here."""
        return [site for site in sites if self.takes(site)]

    def takes(self, site: Site) -> bool:
        """Whether the site is of a kind this op, with these settings, applies to."""
        return site.kind in self.kinds

    def settings(self) -> dict[str, Any]:
        """The settings that differ from their defaults."""
        given = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in given.items()}


Build = Callable[[Site, nn.Module], nn.Module]


def layer_of(site: Site, owner: nn.Module, recorded: Trace) -> nn.Module:
    """The conv or pool of a site: the module itself, or the layer a functional call is equal to.

    Args:
        site: Of kind conv or pool.
        owner: The module at ``site.owner``, of the skeleton or of the model.
        recorded: The trace the site was found in.

    Raises:
        RefusedError: When the call is no conv or pool.
    """
    if site.via == "module":
        return owner
    prefix = f"{site.owner}." if site.owner else ""

    def tensor(attribute: fx.Node) -> Tensor | None:
        path = str(attribute.target)
        if attribute.op != "get_attr" or path == "constant" or not path.startswith(prefix):
            return None
        holder, _, name = path.removeprefix(prefix).rpartition(".")
        return getattr(owner.get_submodule(holder), name, None)

    layer = lift(call_of(site, recorded), tensor)
    if layer is None:
        raise RefusedError(f"'{site.path}' is no conv or pool")
    return layer.train(owner.training)


def call_of(site: Site, recorded: Trace) -> fx.Node:
    """The first recorded call of a functional site."""
    owner, function, index = site.path.split(":")
    key = {"owner": owner, "name": function, "index": int(index)}
    nodes = (n for n in recorded.graph.nodes if all(n.meta.get(k) == v for k, v in key.items()))
    found: fx.Node = next(n for n in nodes if function != "getitem" or strided_slice(n.args[1]))
    return found


def exchange(site: Site, recorded: Trace, build: Build, into: str) -> Rewrite | Refused:
    """Put ``build(site, layer)``, a layer described by ``into``, in the place of a conv or pool, module or call."""
    owner = recorded.model.get_submodule(site.owner)
    if reason := why_not_exchanged(site, owner):
        return Refused(reason)

    def make(present: nn.Module) -> nn.Module:
        return build(site, layer_of(site, present, recorded))

    if reason := not_alone(site, owner, recorded):
        return Refused(reason)
    if site.via == "module":
        return Rewrite([Swap(site.path, make)], f"{site.type_name} -> {into}")
    if reason := _why_not_call(site, owner, recorded):
        return Refused(reason)
    _, function, index = site.path.split(":")
    how = InsteadOf(function, int(index), passed(owner, recorded, site.owner))
    return Rewrite([SwapCall(site.owner, how, make)], f"{function} -> {into}")


def why_not_exchanged(site: Site, owner: nn.Module) -> str | None:
    """Why the module of a site cannot give way to another one."""
    if site.via == "module" and hasattr(type(owner), HOWS):
        return "has surgery at its input or output, which would be lost; put this step before that one"
    return untouchable(owner)


def on_skip(site: Site, recorded: Trace, make: Callable[[nn.Module], nn.Module]) -> OnEdge | Refused:
    """Pass the features of a skip through the module ``make`` builds; ``site`` is of kind ``skip``."""
    owner, (_, function, index) = recorded.model.get_submodule(site.owner), site.path.split(":")
    residual = residual_of(call_of(site, recorded), recorded.model)
    if residual is None:
        return Refused("is no addition of two branches any more")
    if reason := untouchable(owner) or _why_not_call(site, owner, recorded):
        return Refused(reason)
    given = passed(owner, recorded, site.owner)
    child = free_child(owner, f"surgeon_skip_{function}_{index}_")
    return OnEdge(
        site.owner, OnOperand(child, function, int(index), residual.add.args.index(residual.skip), given), make
    )


def not_alone(site: Site, owner: nn.Module, recorded: Trace) -> str | None:
    """Why the parameters of a site cannot be exchanged: others hold or read them too."""
    if other := shared_with(owner, recorded.model):
        return f"shares a parameter with '{other}', and each would get one of its own; copy it first"
    return read_elsewhere(site.path, recorded) if site.via == "module" else None


def read_elsewhere(path: str, recorded: Trace) -> str | None:
    """Why the parameters of the module at ``path`` cannot be exchanged: code outside of it reads them."""
    nodes = (n for n in recorded.graph.nodes if n.op == "get_attr" and str(n.target).rpartition(".")[0] == path)
    found = next((str(node.target) for node in nodes), None)
    return None if found is None else f"'{found}' is read by other code too, which would then see another tensor"


def shared_with(module: nn.Module, model: nn.Module) -> str | None:
    """The path of another module of ``model`` that holds a parameter of ``module`` itself; None if there is none."""
    own = {id(p) for p in module._parameters.values() if p is not None}
    for path, other in model.named_modules():
        if other is not module and any(id(p) in own for p in other._parameters.values()):
            return str(path)
    return None


def _why_not_call(site: Site, owner: nn.Module, recorded: Trace) -> str | None:
    """Why the owner's code does not show the call, in one mode or the other, or cannot become another."""
    if reason := why_not_derived(type(owner)):
        return reason
    call, function = call_of(site, recorded), site.path.split(":")[1]
    key = {k: call.meta[k] for k in ("owner", "run")}
    run = [n for n in recorded.graph.nodes if n.op != "get_attr" and all(n.meta.get(k) == v for k, v in key.items())]
    expected = sum(n.op == "call_function" and n.meta["name"] == function and is_call(n, function) for n in run)
    given = passed(owner, recorded, site.owner)
    for training in (False, True):
        try:
            found = sum(is_call(node, function) for node in own_graph(owner, training, given).graph.nodes)
        except RefusedError as error:
            return str(error)
        if found != expected:
            mode = "training" if training else "evaluation"
            return (
                f"the {mode} code of its owner {type(owner).__name__} shows {found} calls of it, {expected} were made"
            )
    return None


OPS: dict[str, type[AbstractOp]] = {}
T = TypeVar("T", bound=type[AbstractOp])


def register_op(cls: T) -> T:
    """Class decorator that gives an op its name."""
    if OPS.get(cls.name, cls).__qualname__ != cls.__qualname__:
        raise RecipeError(f"op name '{cls.name}' is taken by {OPS[cls.name].__qualname__}; choose another")
    OPS[cls.name] = cls
    return cls
