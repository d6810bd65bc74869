"""The verbs that change a model: plan, apply, record, undo.

Every step of a recipe is planned and performed on a skeleton first; only when all of it fits is the model touched.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from surgeon.change import Record
from surgeon.edit import perform, revert
from surgeon.errors import RefusedError
from surgeon.host import InputSize, tell_operated, tell_restored, unwrap
from surgeon.ledger import Ledger
from surgeon.optimizers import check_optimizer, exchange_parameters
from surgeon.planning import plan_recipe
from surgeon.randomness import generators_kept
from surgeon.recipe import Recipe


def plan(model: nn.Module, recipe: Any, input_size: InputSize = None) -> Record:
    """Dry run of :func:`apply`: what would change, with parameters, MACs and activation memory before and after.

    Args:
        model: As for :func:`apply`.
        recipe: As for :func:`apply`.
        input_size: As for :func:`apply`.

    Raises:
        SurgeonError: Where :func:`apply` would raise.

    Example:
        >>> import timm, surgeon
        >>> model = timm.create_model("test_resnet")
        >>> surgeon.plan(model, "spd").count("rewritten"), surgeon.record(model).count("rewritten")
        (8, 0)
    """
    return plan_recipe(unwrap(model), Recipe.parse(recipe), input_size).record


def apply(
    model: nn.Module, recipe: Any, input_size: InputSize = None, *, optimizer: torch.optim.Optimizer | None = None
) -> nn.Module:
    """Operate on ``model`` in place and return it.

    Nothing is touched unless every step fits; any failure rolls back every step, bit for bit.

    Args:
        model: Any module that takes one image tensor.
        recipe: An op's name, an op, a Step, a list of these, a Recipe, a dict, a YAML file, a shipped recipe's name.
        input_size: An int, (H, W) or (C, H, W); by default what the model says of itself.
        optimizer: Its parameters are exchanged inside their groups; settings stay, stale state is dropped. What is
            new joins the group of its neighbour of the same kind (matrix or vector).

    Raises:
        RecipeError: When the recipe is not valid.
        NoSiteError: When a selection matches nothing that can be rewritten or is unchanged.
        RefusedError: When the model, or every site selected, is refused.
        TraceError: When the forward cannot run.

    Example:
        >>> import timm, surgeon
        >>> model = surgeon.apply(timm.create_model("test_resnet"), "spd")
        >>> surgeon.record(model).count("rewritten")
        8
    """
    module = unwrap(model)
    recipe = Recipe.parse(recipe)
    if optimizer is not None:
        check_optimizer(optimizer, module)
    planned = plan_recipe(module, recipe, input_size)
    ledger = Ledger.of(module) or Ledger.open(module, planned.input_size, recipe.keep_originals, planned.located)
    held, undoable = dict(module.named_parameters()), recipe.keep_originals and not ledger.folded(module)
    with generators_kept():
        log = perform(module, planned.edits)
    put_back: Callable[[], None] | None = None
    try:
        put_back = exchange_parameters(optimizer, held, module) if optimizer is not None else None
        ledger.add(module, planned.record, planned.sites, log if undoable else None)
    except BaseException:
        if put_back is not None:
            put_back()
        revert(module, log)
        raise
    tell_operated(model)
    return model


def record(model: nn.Module) -> Record:
    """Every change since the first ``apply``; empty on an untouched model.

    Example:
        >>> import timm, surgeon
        >>> print(surgeon.record(timm.create_model("test_resnet")))
        no changes
    """
    ledger = Ledger.of(unwrap(model)) or Ledger.of(model)
    return ledger.record if ledger else Record()


def undo(model: nn.Module) -> nn.Module:
    """Bring ``model`` back to before the first ``apply``, bit for bit, discarding all training since.

    Tensors you replaced by others of another shape since, such as a new classifier, stay as they are. An optimizer made
    for the operated model still holds its parameters: build it anew.

    Raises:
        RefusedError: When nothing was applied, the originals were not kept, or operated modules are gone; the model is
            then as it was.

    Example:
        >>> import timm, surgeon
        >>> model = surgeon.apply(timm.create_model("test_resnet"), "spd")
        >>> surgeon.record(surgeon.undo(model)).count("rewritten")
        0
    """
    module = unwrap(model)
    ledger = Ledger.of(module)
    if ledger is None and Ledger.of(model) is not None:
        raise RefusedError("cannot undo a lowered copy: undo the model it was made from")
    if ledger is None:
        raise RefusedError(f"nothing to undo: {type(module).__name__} was not operated")
    ledger.take_back(module)
    tell_restored(model)
    return model
