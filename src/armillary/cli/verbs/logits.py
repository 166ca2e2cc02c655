"""The verb ``logits``: what a model on disk computes for given tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from armillary.cli.app import JsonOption, app
from armillary.cli.show.screen import Reporter, err, show_json


@app.command()
def logits(
    model: Annotated[Path, typer.Argument(help="A model in any format that convert reads.", show_default=False)],
    tokens: Annotated[
        Path, typer.Option(help="A safetensors file with 'tokens', int64 of shape (b, n).", show_default=False)
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out", "-o", help="The file to write: 'logits', fp32 of shape (b, n, vocabulary).", show_default=False
        ),
    ],
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it exists.")] = False,
    *,
    as_json: JsonOption = False,
) -> None:
    """Write the logits of a model for given tokens, to compare it with another program or format.

    Weights are widened to fp32, and each sequence is computed whole, without a cache.

    Example: armillary logits ./model --tokens tokens.safetensors --out logits.safetensors
    """
    from armillary.model import write_logits

    reporter = Reporter()
    try:
        found = write_logits(
            model,
            tokens,
            out,
            lambda done, of: reporter("logits", done, of, f"{done} of {of} sequences"),
            force=force,
        )
    finally:
        reporter.close()
    if as_json:
        show_json({"out": str(out), "shape": list(found.shape)})
    else:
        err.print(f"{escape(str(out))}: logits {list(found.shape)}", highlight=False)
