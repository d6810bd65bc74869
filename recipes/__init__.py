"""Recipes: one YAML file says model, surgery, data, fine-tuning; `recipes.run` does it all, resumably.

Names are loaded when first used, so that ``surgeon --help`` does not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from recipes.finetuning import Finetuned, finetune
    from recipes.loading import load, parse, shipped
    from recipes.repeating import Repeated, repeat
    from recipes.running import Run, run
    from recipes.schema import RecipeFile

__all__ = ["Finetuned", "RecipeFile", "Repeated", "Run", "finetune", "load", "parse", "repeat", "run", "shipped"]

_HOME = {
    "Finetuned": "finetuning",
    "RecipeFile": "schema",
    "Repeated": "repeating",
    "Run": "running",
    "finetune": "finetuning",
    "load": "loading",
    "parse": "loading",
    "repeat": "repeating",
    "run": "running",
    "shipped": "loading",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'recipes' has no attribute '{name}'; it has: {', '.join(__all__)}")
    return getattr(import_module(f"recipes.{_HOME[name]}"), name)
