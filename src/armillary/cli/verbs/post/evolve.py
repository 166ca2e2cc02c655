"""The verb ``post evolve``: rounds of harder and other instructions, with elimination."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from armillary.cli.app import JsonOption
from armillary.cli.backends import Engine, ModelArgument, opens_models
from armillary.cli.show.screen import err, out, show_json, show_table
from armillary.cli.values import fraction, probability


@opens_models
def evolve(
    model: ModelArgument,
    items: Annotated[Path, typer.Option(help="Items or conversations to evolve, in any format.", show_default=False)],
    folder: Annotated[Path, typer.Option("--out", "-o", help="Folder of the stage; resumes.", show_default=False)],
    reference: Annotated[
        str | None,
        typer.Option(help="Model whose pass rate measures difficulty (default: MODEL).", show_default=False),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of evolution.")] = 2,
    breadth: Annotated[
        float, typer.Option(callback=fraction, help="Share of changes that add breadth instead of depth.")
    ] = 0.25,
    samples: Annotated[
        int, typer.Option(min=1, help="Answers per item and temperature, to measure the pass rate.")
    ] = 4,
    temperature: Annotated[
        list[float] | None,
        typer.Option(help="Temperature of these answers; repeatable (default: 0.8).", show_default=False),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Token limit of answers and new instructions.")] = 256,
    topic: Annotated[
        list[str] | None,
        typer.Option(help="Topic for breadth; repeatable (default: built-in list).", show_default=False),
    ] = None,
    held_out: Annotated[
        float,
        typer.Option(callback=probability, help="Held-out share of a family's problems, as in synthesize."),
    ] = 0.1,
    seed: Annotated[int, typer.Option(min=0, help="Seed of all draws.")] = 0,
    *,
    engine: Engine,
    as_json: JsonOption = False,
) -> None:
    """Make items harder and broader in rounds; items that did not become harder are dropped.

    Example: armillary post evolve ./chat --items items.jsonl --out evolved
    """
    from armillary.generate import open_backend
    from armillary.post import EvolveOptions, SampleOptions
    from armillary.post import evolve as evolved

    options = EvolveOptions(
        rounds,
        breadth,
        SampleOptions(samples, tuple(temperature or (0.8,)), max_new_tokens, seed),
        max_new_tokens,
        tuple(topic or ()),
        held_out,
        progress=lambda done: err.print(f"evolve: {done} changes done", highlight=False),
    )
    with ExitStack() as stack:
        teacher = open_backend(model, engine.options, engine.name)
        stack.callback(teacher.close)
        measured = teacher
        if reference is not None and reference != model:
            measured = open_backend(reference)
            stack.callback(measured.close)
        record = evolved(items, folder, teacher, measured, options)
    if as_json:
        return show_json(record)
    counts = record["counts"]
    reasons = sorted({reason for row in counts["rounds"].values() for reason in row})
    show_table(
        f"{folder}: {counts['kept']} items, including the originals",
        ["round", *reasons],
        [[number, *(row.get(reason, 0) for reason in reasons)] for number, row in counts["rounds"].items()],
    )
    if "pass_rate" in counts:
        show_table(
            "pass rate of the reference model on harder items",
            ["", "mean", "low", "high"],
            [[name, *(rate[part] for part in ("value", "low", "high"))] for name, rate in counts["pass_rate"].items()],
        )
    out.print(f"items: {escape(str(folder / 'items.jsonl'))}", highlight=False)
