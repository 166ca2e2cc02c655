"""The options with which verbs open a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ModelArgument = Annotated[
    str, typer.Argument(help="A model folder, a .gguf file, or the URL of a server.", show_default=False)
]
BackendOption = Annotated[
    str | None,
    typer.Option(help="Engine: native, transformers, llama.cpp or endpoint (default: by MODEL).", show_default=False),
]
BatchSizeOption = Annotated[int | None, typer.Option(min=1, help="Requests at a time.", show_default=False)]
ContextOption = Annotated[int | None, typer.Option(min=1, help="Longest sequence in tokens.", show_default=False)]
DeviceOption = Annotated[str | None, typer.Option(help="As PyTorch names it, such as cpu.", show_default=False)]
PrecisionOption = Annotated[str | None, typer.Option(help="Such as float32 or bfloat16.", show_default=False)]
ThreadsOption = Annotated[int | None, typer.Option(min=1, help="Threads of the processor.", show_default=False)]
TokenizerOption = Annotated[
    Path | None, typer.Option(help="The tokenizer of a server's model, a folder.", show_default=False)
]
EndpointOption = Annotated[
    list[str] | None,
    typer.Option(
        "--endpoint",
        help="A setting of a server, NAME=VALUE: model, api (completions or chat), key_variable (the environment "
        "variable that holds the key; default OPENAI_API_KEY), timeout_s, retries, cache (a folder), prices (of a "
        "million tokens in prompts and in answers: 0.15,0.6), extra (JSON for the body). Repeatable.",
        show_default=False,
    ),
]
