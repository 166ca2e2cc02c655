"""Options shared by several verbs, passed to a verb as one object instead of one parameter each."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, get_type_hints

Verb = Callable[..., None]


def with_options(
    parameter: str, options: Mapping[str, Any], make: Callable[[dict[str, Any]], Any]
) -> Callable[[Verb], Verb]:
    """Replace a verb's ``parameter`` with ``options``; the parameter receives ``make`` applied to their values.

    ``options`` are Typer annotations by name; an option that is not given is None. A command-line argument
    (``typer.Argument``) is required.
    """

    def decorate(verb: Verb) -> Verb:
        hints = get_type_hints(verb, include_extras=True)
        parameters: list[inspect.Parameter] = []
        for own in inspect.signature(verb).parameters.values():
            if own.name == parameter:
                parameters += [
                    inspect.Parameter(
                        name,
                        inspect.Parameter.KEYWORD_ONLY,
                        default=inspect.Parameter.empty if _is_argument(kind) else None,
                        annotation=kind,
                    )
                    for name, kind in options.items()
                ]
            else:
                parameters.append(own.replace(annotation=hints[own.name], kind=inspect.Parameter.KEYWORD_ONLY))

        @functools.wraps(verb)
        def command(**given: Any) -> None:
            values = {name: given.pop(name) for name in options}
            verb(**given, **{parameter: make(values)})

        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {each.name: each.annotation for each in parameters}
        return command

    return decorate


def _is_argument(kind: Any) -> bool:
    return any(type(part).__name__ == "ArgumentInfo" for part in getattr(kind, "__metadata__", ()))
