"""The options to open a model. Each verb decorated with ``opens_models`` takes all of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from armillary.cli.options import with_options

if TYPE_CHECKING:
    from armillary.generate import BackendOptions

ModelArgument = Annotated[
    str, typer.Argument(help="A model folder, a .gguf file, or the URL of a server.", show_default=False)
]
BackendOption = Annotated[
    str | None,
    typer.Option(help="Engine: native, transformers, llama.cpp or endpoint (default: by MODEL).", show_default=False),
]
BatchSizeOption = Annotated[int | None, typer.Option(min=1, help="Concurrent requests.", show_default=False)]
ContextOption = Annotated[int | None, typer.Option(min=1, help="Longest sequence in tokens.", show_default=False)]
DeviceOption = Annotated[str | None, typer.Option(help="PyTorch device, such as cpu.", show_default=False)]
PrecisionOption = Annotated[
    str | None, typer.Option(help="Precision, such as float32 or bfloat16.", show_default=False)
]
ThreadsOption = Annotated[int | None, typer.Option(min=1, help="CPU threads.", show_default=False)]
TokenizerOption = Annotated[
    Path | None,
    typer.Option(help="Tokenizer folder: for a server, that of its model; for a run, its corpus.", show_default=False),
]
EndpointOption = Annotated[
    list[str] | None,
    typer.Option(
        "--endpoint",
        help="Server setting, NAME=VALUE: model, api (completions or chat), key_variable (the environment "
        "variable that holds the key; default OPENAI_API_KEY), timeout_s, retries, cache (a folder), prices (per "
        "million prompt and answer tokens: 0.15,0.6), extra (JSON for the body). Repeatable.",
        show_default=False,
    ),
]
_OPTIONS: dict[str, Any] = {
    "backend": BackendOption,
    "batch_size": BatchSizeOption,
    "context": ContextOption,
    "device": DeviceOption,
    "precision": PrecisionOption,
    "threads": ThreadsOption,
    "tokenizer": TokenizerOption,
    "endpoint": EndpointOption,
}


# A server opens no other server.
_SERVED = {name: option for name, option in _OPTIONS.items() if name != "endpoint"}
_SERVED["backend"] = Annotated[
    str | None,
    typer.Option(help="Engine: auto, native, llama.cpp, vllm or transformers (default: auto).", show_default=False),
]
_SERVED["batch_size"] = Annotated[
    int | None, typer.Option(min=1, help="Answers computed concurrently (native: 64, others: 1).", show_default=False)
]


@dataclass(frozen=True)
class Engine:
    """How to open a model: the ``name`` of an engine (None: the one that recognises the model), and its options."""

    name: str | None
    options: BackendOptions


def _engine(values: dict[str, Any]) -> Engine:
    from armillary.generate import BackendOptions, EndpointOptions  # imported here to keep `armillary --help` fast

    name, endpoint = values.pop("backend"), values.pop("endpoint", None)
    return Engine(name, BackendOptions(**values, endpoint=EndpointOptions.from_settings(endpoint or [])))


# Replaces a verb's parameter ``engine`` with the options to open a model, and passes them as one object.
opens_models = with_options("engine", _OPTIONS, _engine)
# The same for a verb that serves a model.
serves_models = with_options("engine", _SERVED, _engine)
