"""The verb ``convert``: a model from one format to another."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from armillary.cli.app import JsonOption, app
from armillary.cli.show.screen import Reporter, err, show_json, show_table


@app.command()
def convert(
    src: Annotated[Path, typer.Argument(help="The model to read; its format is detected.", show_default=False)],
    dst: Annotated[Path, typer.Argument(help="The new folder, or .gguf file; it must not exist.", show_default=False)],
    to: Annotated[str, typer.Option(help="native, huggingface, telechat2, mindspore or gguf.", show_default=False)],
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16 or float16 (default: the source's).", show_default=False)
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="The config.json of a MindSpore checkpoint.", show_default=False)
    ] = None,
    container: Annotated[
        str | None, typer.Option(help="For mindspore: ckpt (default) or safetensors.", show_default=False)
    ] = None,
    quantize: Annotated[
        str | None, typer.Option(help="For gguf: q8_0 or q4_k_m; for huggingface: int8 or int4.", show_default=False)
    ] = None,
    evaluate: Annotated[
        Path | None,
        typer.Option(
            help="A corpus folder: measure the loss on it before and after, and record both in the card.",
            show_default=False,
        ),
    ] = None,
    calibrate: Annotated[
        Path | None,
        typer.Option(
            help="A corpus folder: first scale channels by the activations on its text (AWQ).", show_default=False
        ),
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Compare the logits of the two models; loads both.")] = False,
    *,
    as_json: JsonOption = False,
) -> None:
    """Convert a model to another format, tensor by tensor; the files of the tokenizer are copied.

    Example: armillary convert ./telechat2-3b ./telechat2-3b-hf --to huggingface --check
    """
    from armillary.model import ConvertOptions
    from armillary.model import convert as run
    from armillary.publish import calibration_of, convert_measured

    reporter, begun = Reporter(), time.monotonic()
    tokens = None if calibrate is None else calibration_of(calibrate)
    options = ConvertOptions(to, dtype, check, config, container, quantize, tokens)
    losses: list[Any] = []

    def progress(stage: str, done: int, total: int) -> None:
        rate = done / max(time.monotonic() - begun, 1e-9) / 1e6
        note = f"{done / 1e9:.2f} of {total / 1e9:.2f} GB, {rate:.0f} MB/s"
        reporter(stage, done, total, note if stage == "convert" else f"{done} of {total} windows")

    try:
        if evaluate is None:
            found = run(src, dst, options, lambda done, of: progress("convert", done, of))
        else:
            found, losses = convert_measured(src, dst, options, evaluate, progress)
    finally:
        reporter.close()
    if as_json:
        show_json({**asdict(found), "out": str(dst), "losses": [asdict(row) for row in losses]})
        return
    checked = ""
    if found.difference is not None:
        checked = f"; largest difference of logits {found.difference:.3g}, {found.relative:.2g} of the largest logit"
    err.print(
        f"{escape(str(dst))}: {found.source} to {found.to}, {found.dtype}, {found.bytes / 1e9:.2f} GB{checked}",
        highlight=False,
    )
    if found.no_tokenizer is not None:
        err.print(f"without a tokenizer: {escape(found.no_tokenizer)}", highlight=False)
    if losses:
        heads = ["domain", "tokens", "before", "after", "difference", "low", "high", "p"]
        rows = [
            [row.domain, row.tokens, row.before, row.after, *asdict(row.difference).values(), row.p_value]
            for row in losses
        ]
        show_table("loss in nats per token", heads, rows)
