"""The inference engines by name, and the options with which one is opened. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from armillary.generate.backend import Backend
from armillary.recipe import UsageError


@dataclass(frozen=True)
class Prices:
    """What an endpoint charges, in one currency, for a million tokens of prompts and of answers."""

    prompt: float
    answer: float


@dataclass(frozen=True)
class EndpointOptions:
    """What only an endpoint has.

    Attributes:
        model: its name at the server; None where the server has exactly one.
        api: "completions" continues text, "chat" answers messages; None takes what fits the request.
        key_variable: the environment variable that holds the key.
        timeout_s: how long one try may take in all, from the connection to the last byte.
        retries: how often a request is tried again.
        cache: a folder in which answers are kept over all runs, by request and endpoint; None keeps none.
        prices: None where they are not known.
        extra: fields that are added to the body of each request; one that is None is taken out of it.
    """

    model: str | None = None
    api: Literal["completions", "chat"] | None = None
    key_variable: str = "OPENAI_API_KEY"
    timeout_s: float = 600.0
    retries: int = 6
    cache: Path | None = None
    prices: Prices | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.timeout_s > 0:
            raise UsageError(f"timeout must be more than 0 seconds, given {self.timeout_s}")
        if self.retries < 0:
            raise UsageError(f"retries must be 0 or more, given {self.retries}")

    @classmethod
    def from_settings(cls, settings: Sequence[str]) -> EndpointOptions:
        """Options from texts such as ``model=qwen`` and ``prices=0.15,0.6``, as a command line gives them.

        Raises:
            UsageError: a name that does not exist, or a value that does not fit.
        """
        given: dict[str, Any] = {}
        for setting in settings:
            name, separator, value = setting.partition("=")
            if name not in _READ or not separator:
                raise UsageError(f"endpoint setting {setting!r}: write NAME=VALUE; names: {', '.join(_READ)}")
            try:
                given[name] = _READ[name](value)
            except ValueError as error:
                raise UsageError(f"endpoint setting {name}: {value!r} does not fit ({error})") from None
        return cls(**given)


def _api(value: str) -> str:
    if value not in ("completions", "chat"):
        raise ValueError("it is completions or chat")
    return value


def _prices(value: str) -> Prices:
    prompt, separator, answer = value.partition(",")
    if not separator or float(prompt) < 0 or float(answer) < 0:
        raise ValueError("it is two numbers, such as 0.15,0.6")
    return Prices(float(prompt), float(answer))


def _object(value: str) -> dict[str, Any]:
    document = json.loads(value)
    if not isinstance(document, dict):
        raise ValueError("it is a JSON object")
    return document


_READ: dict[str, Callable[[str], Any]] = {
    "model": str,
    "api": _api,
    "key_variable": str,
    "timeout_s": float,
    "retries": int,
    "cache": Path,
    "prices": _prices,
    "extra": _object,
}


@dataclass(frozen=True)
class BackendOptions:
    """How a backend is opened. None leaves a choice to the engine; what an engine does not take is refused.

    Attributes:
        batch_size: requests at a time.
        context: longest sequence in tokens, prompt and answer together.
        device: as PyTorch names it, such as "cpu" or "cuda:1".
        precision: in which the engine calculates, such as "float32" or "bfloat16".
        threads: of the processor.
        tokenizer: a ``tokenizer.json`` or a folder with one, for servers that do not cut text into tokens; for a run
            the folder of its corpus, where that is not beside its store.
        endpoint: what only an endpoint has.
    """

    batch_size: int | None = None
    context: int | None = None
    device: str | None = None
    precision: str | None = None
    threads: int | None = None
    tokenizer: Path | None = None
    endpoint: EndpointOptions = field(default_factory=EndpointOptions)

    def __post_init__(self) -> None:
        for name in ("batch_size", "context", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name.replace('_', ' ')} must be 1 or more, given {value}")


Open = Callable[[str, BackendOptions], Backend]


@dataclass(frozen=True)
class Engine:
    """``open`` makes the backend; ``recognises`` says whether a target is for this engine; ``takes`` names options."""

    name: str
    open: Open
    recognises: Callable[[str], bool]
    takes: frozenset[str]


_ENGINES: dict[str, Engine] = {}


def register(name: str, recognises: Callable[[str], bool], takes: set[str]) -> Callable[[Open], Open]:
    """Make the decorated function open backends of this name.

    It receives the target as it was given, and options of which only those in ``takes`` may be set. Where two engines
    recognise a target, the one that was registered first is taken.

    Raises:
        ValueError: the name is taken, or an option does not exist.
    """

    def add(opens: Open) -> Open:
        if name in _ENGINES or takes - {option.name for option in fields(BackendOptions)}:
            raise ValueError(f"engine {name!r} is registered already, or takes an option that does not exist: {takes}")
        _ENGINES[name] = Engine(name, opens, recognises, frozenset(takes))
        return opens

    return add


def engines() -> list[Engine]:
    """All engines, in the order in which they were registered."""
    return list(_ENGINES.values())
