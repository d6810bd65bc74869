"""Operate on a vision network you already have, exactly, and see inside it.

locate -> plan -> apply -> record, verify, undo, save, load: see each name's docstring.
"""

from surgeon import reference_nets as reference_nets  # registers them with timm
from surgeon import yolo as yolo  # registers ultralytics' objects
from surgeon.building import create_model
from surgeon.change import Change, Record
from surgeon.errors import LoadError, NoSiteError, RecipeError, RefusedError, SurgeonError, TraceError
from surgeon.loading import load
from surgeon.locating import locate
from surgeon.lowering import lower
from surgeon.op import OPS, AbstractOp
from surgeon.persistence import save
from surgeon.recipe import Recipe, Step, unknown
from surgeon.rewriting import apply, plan, record, undo
from surgeon.select import Select
from surgeon.site import Site, Sites
from surgeon.verification import Verification
from surgeon.verifying import verify


def list_ops() -> list[str]:
    """The names of all ops, sorted.

    Example:
        >>> "spd" in list_ops()
        True
    """
    return sorted(OPS)


def get_op(name: str) -> type[AbstractOp]:
    """The class of an op; its arguments are the op's settings.

    Raises:
        RecipeError: When there is no such op.

    Example:
        >>> get_op("spd")(order="conv-spd").name
        'spd'
    """
    if name not in OPS:
        raise RecipeError(unknown("op", name, list_ops()))
    return OPS[name]


__version__ = "0.1.0"
__all__ = [
    "AbstractOp",
    "Change",
    "LoadError",
    "NoSiteError",
    "Recipe",
    "RecipeError",
    "Record",
    "RefusedError",
    "Select",
    "Site",
    "Sites",
    "Step",
    "SurgeonError",
    "TraceError",
    "Verification",
    "apply",
    "create_model",
    "get_op",
    "list_ops",
    "load",
    "locate",
    "lower",
    "plan",
    "record",
    "save",
    "undo",
    "verify",
]
