"""The registry of inference engines by name, and the options of a backend. Imports no torch."""

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
    """Prices of an endpoint, in one currency, for a million prompt tokens and a million answer tokens."""

    prompt: float
    answer: float


@dataclass(frozen=True)
class EndpointOptions:
    """Options that only an endpoint has.

    Attributes:
        model: the model's name on the server; may be None if the server has exactly one.
        api: "completions" continues text, "chat" answers messages; None chooses by the request.
        key_variable: the environment variable that holds the key.
        timeout_s: time limit of one attempt, from the connection to the last byte.
        retries: how often a request is retried.
        cache: folder in which answers are kept across runs, by request and endpoint; None keeps none.
        prices: None if unknown.
        extra: fields added to the body of each request; a None removes the field.
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
        """Options parsed from command-line texts such as ``model=qwen`` and ``prices=0.15,0.6``.

        Raises:
            UsageError: an unknown name, or a wrong value.
        """
        given: dict[str, Any] = {}
        for setting in settings:
            name, separator, value = setting.partition("=")
            if name not in _READ or not separator:
                raise UsageError(f"endpoint setting {setting!r}: write NAME=VALUE; names: {', '.join(_READ)}")
            try:
                given[name] = _READ[name](value)
            except ValueError as error:
                raise UsageError(f"endpoint setting {name}: {value!r} is wrong ({error})") from None
        return cls(**given)


def _api(value: str) -> str:
    if value not in ("completions", "chat"):
        raise ValueError("must be completions or chat")
    return value


def _prices(value: str) -> Prices:
    prompt, separator, answer = value.partition(",")
    if not separator or float(prompt) < 0 or float(answer) < 0:
        raise ValueError("must be two numbers, such as 0.15,0.6")
    return Prices(float(prompt), float(answer))


def _object(value: str) -> dict[str, Any]:
    document = json.loads(value)
    if not isinstance(document, dict):
        raise ValueError("must be a JSON object")
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
    """Options to open a backend. None leaves the choice to the engine; an option that it does not accept is refused.

    Attributes:
        batch_size: number of requests at a time.
        context: longest sequence in tokens, prompt and answer together.
        device: PyTorch's name of a device, such as "cpu" or "cuda:1".
        precision: precision of the computation, such as "float32" or "bfloat16".
        threads: number of CPU threads.
        tokenizer: a ``tokenizer.json`` or a folder with one, for servers that do not tokenize text; for a run, the
            folder of its corpus if it is not next to the store.
        endpoint: options that only an endpoint has.
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
    """``open`` creates the backend; ``recognises`` tests a target; ``takes`` names the accepted options."""

    name: str
    open: Open
    recognises: Callable[[str], bool]
    takes: frozenset[str]


_ENGINES: dict[str, Engine] = {}


def register(name: str, recognises: Callable[[str], bool], takes: set[str]) -> Callable[[Open], Open]:
    """Register the decorated function to open backends with this name.

    It receives the target unchanged, and options of which only those in ``takes`` may be set. If several engines
    recognise a target, the one registered first is used.

    Raises:
        ValueError: the name is taken, or an option does not exist.
    """

    def add(opens: Open) -> Open:
        if name in _ENGINES or takes - {option.name for option in fields(BackendOptions)}:
            raise ValueError(f"engine {name!r} is already registered, or takes an option that does not exist: {takes}")
        _ENGINES[name] = Engine(name, opens, recognises, frozenset(takes))
        return opens

    return add


def engines() -> list[Engine]:
    """All engines, in the order of their registration."""
    return list(_ENGINES.values())
