"""Whether a model can be trained on a data set: tried with one black image, before anything is written.

Apart from training because `run` asks for every variant before it trains the first.
"""

from __future__ import annotations

import torch
from torch import nn

from recipes.data import Data
from recipes.processes import seeded
from surgeon.errors import RecipeError


def outputs(model: nn.Module, data: Data) -> int:
    """Return the number of logits of a model that fits a data set.

    Args:
        model: Is asked in eval mode and left as it was.
        data: Whose image size and classes count.

    Raises:
        RecipeError: When the model does not take such images, gives no logits, or fewer than there are classes.

    Example:
        >>> from recipes.data import batch, open_source
        >>> from recipes.data_schema import DigitsData
        >>> data = batch(open_source(DigitsData(size=8)), None, batch_size=8)
        >>> outputs(nn.Sequential(nn.Flatten(), nn.Linear(64, 12)), data)
        12
    """
    name, size = type(model).__name__, " x ".join(map(str, data.input_size))
    try:
        logits = _answer(model, data.input_size)
    except (RuntimeError, ValueError, TypeError, AssertionError, IndexError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise RecipeError(
            f"{name} cannot take the images of '{data.name}', {size} (channels x height x width): {first}; "
            "set data.size (or size and canvas) or model.in_chans"
        ) from None
    if not isinstance(logits, torch.Tensor) or logits.ndim != 2:
        found = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise RecipeError(f"{name} is no classifier: for one image it gives {found}, not (1, number of classes)")
    if logits.shape[1] < data.num_classes:
        raise RecipeError(
            f"{name} tells {logits.shape[1]} classes apart, and '{data.name}' has {data.num_classes}; "
            f"set model.num_classes: {data.num_classes}, or leave it out"
        )
    return int(logits.shape[1])


def _answer(model: nn.Module, input_size: tuple[int, int, int]) -> object:
    """Run one image, leaving modes and random state as they were."""
    modes = {module: module.training for module in model.modules()}
    first = next((tensor for tensor in model.parameters()), torch.empty(0))
    try:
        with seeded(0), torch.no_grad():
            return model.eval()(torch.zeros(1, *input_size, device=first.device, dtype=first.dtype))
    finally:
        for module, mode in modes.items():
            module.training = mode
