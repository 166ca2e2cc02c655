"""Opens the backend of a model: the engine that recognises the target, or the named one."""

from __future__ import annotations

import difflib
from dataclasses import fields

# Each module registers its engine; the first that recognises a target wins.
from armillary.generate import (  # noqa: F401
    endpoint,
    folders,
    llamacpp,
    transformers,
)
from armillary.generate.backend import Backend
from armillary.generate.registry import BackendOptions, Engine, engines
from armillary.recipe import UsageError


def open_backend(target: str, options: BackendOptions | None = None, name: str | None = None) -> Backend:
    """The backend of ``target``: a URL, a ``.gguf`` file, or a folder with a model.

    Args:
        options: options of the backend; those that the engine does not accept are refused.
        name: an engine to use instead of the one that recognises the target.

    Raises:
        UsageError: no engine with this name, none for this target, or an option that the engine does not accept.
        ArmillaryError: the model cannot be loaded, or an extra is not installed.
    """
    options = options or BackendOptions()
    engine = _engine(target, name)
    default = BackendOptions()
    for option in fields(options):
        if getattr(options, option.name) != getattr(default, option.name) and option.name not in engine.takes:
            raise UsageError(
                f"{option.name.replace('_', ' ')} is not an option of the {engine.name} backend for {target}; its "
                f"options: {', '.join(sorted(engine.takes)).replace('_', ' ')}"
            )
    return engine.open(target, options)


def _engine(target: str, name: str | None) -> Engine:
    known = {engine.name: engine for engine in engines()}
    if name is not None:
        if name not in known:
            close = difflib.get_close_matches(name, known, 1)
            raise UsageError(
                f"backend {name!r} does not exist{f'; nearest: {close[0]!r}' if close else ''}; there are "
                f"{', '.join(known)}"
            )
        return known[name]
    for engine in known.values():
        if engine.recognises(target):
            return engine
    raise UsageError(
        f"{target}: not a model that any backend recognises; give a folder with config.json and weights, a .gguf file, "
        "or the URL of an OpenAI-compatible server (https://…/v1)"
    )
