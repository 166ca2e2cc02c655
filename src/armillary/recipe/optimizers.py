"""The kinds of optimizers that a run can name: their options, and the facts that rooms without torch need.

The steps of a kind are registered in ``armillary.optim`` under the same name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, ClassVar, TypeVar

from pydantic import AfterValidator, Field

from armillary.recipe.shapes import Document


class OptimizerOptions(Document):
    """Options of one kind of optimizer beside those of ``OptimizerSpec``; each has a default.

    ``matrices_only``: it updates only the layers' matrices (``Role.matrix``) and leaves the rest to AdamW.
    ``gathers``: it gathers whole matrices from several ranks. ``spectral``: the spectral norm of its steps grows with
    the square root of the width, not with the width; the width transfer corrects for this. ``stacks``: its steps also
    work on a stack of models, like AdamW's fused kernel.
    """

    matrices_only: ClassVar[bool] = False
    gathers: ClassVar[bool] = False
    spectral: ClassVar[bool] = False
    stacks: ClassVar[bool] = False


_Options = TypeVar("_Options", bound=OptimizerOptions)
_KINDS: dict[str, type[OptimizerOptions]] = {}


def register_options(name: str) -> Callable[[type[_Options]], type[_Options]]:
    """Register the decorated class as the options of ``OptimizerSpec.kind`` ``name``.

    Raises:
        ValueError: the name is taken, or an option has no default.
    """

    def add(options: type[_Options]) -> type[_Options]:
        if name in _KINDS:
            raise ValueError(f"options of an optimizer of kind {name!r} are already registered")
        options()
        _KINDS[name] = options
        return options

    return add


def options_of(kind: str) -> type[OptimizerOptions]:
    """The options of a registered kind; raises KeyError for any other kind."""
    return _KINDS[kind]


def _known(kind: str) -> str:
    if kind not in _KINDS:
        raise ValueError(f"should be a registered optimizer: {', '.join(map(repr, sorted(_KINDS)))}")
    return kind


OptimizerKind = Annotated[str, AfterValidator(_known)]


@register_options("adamw")
class AdamWOptions(OptimizerOptions):
    """AdamW has no options beside the common ones."""

    stacks = True


@register_options("muon")
class MuonOptions(OptimizerOptions):
    """Muon; its ``momentum`` is a field of ``OptimizerSpec`` itself, as in runs of earlier versions."""

    matrices_only = True
    gathers = True
    spectral = True

    momentum: float = Field(default=0.95, ge=0, lt=1)
