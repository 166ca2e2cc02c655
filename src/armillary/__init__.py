"""Armillary (浑仪): find a training recipe with many small models, and record what the large run will reach.

The names in ``__all__`` are what most programs need (``docs/python.md``). Each is loaded when it is first used, so that
``import armillary`` stays fast and loads no torch. Everything else is in the rooms, such as `armillary.recipe`.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

__all__ = [
    "AnnealLaw",
    "Corpus",
    "HyperparameterLaw",
    "MixtureLaw",
    "ScalingLaw",
    "Store",
    "Workspace",
    "compare",
    "load_recipe",
    "train_run",
]

_ROOMS = {
    "AnnealLaw": "laws",
    "Corpus": "corpus",
    "HyperparameterLaw": "laws",
    "MixtureLaw": "laws",
    "ScalingLaw": "laws",
    "Store": "store",
    "Workspace": "path",
    "compare": "evaluate",
    "load_recipe": "recipe",
    "train_run": "train",
}


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module 'armillary' has no attribute '{name}'; it has {', '.join(__all__)}")
    value = getattr(import_module(f"armillary.{_ROOMS[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
