"""The verb ``post synthesize``: questions with computed answers, optionally reworded by a teacher."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from armillary.cli.app import JsonOption
from armillary.cli.backends import Engine, opens_models
from armillary.cli.show.screen import Reporter, out, show_json
from armillary.cli.values import not_negative, probability


@opens_models
def synthesize(
    folder: Annotated[Path, typer.Option("--out", "-o", help="New folder of the stage.", show_default=False)],
    n: Annotated[
        int, typer.Option("--n", min=1, help="Questions to make, divided evenly over families, languages and levels.")
    ] = 1000,
    families: Annotated[
        str | None,
        typer.Option(
            help="Comma-separated (default: all); gym:NAME is a data set of reasoning-gym.", show_default=False
        ),
    ] = None,
    language: Annotated[str, typer.Option(help="zh, en, or both: zh,en.")] = "zh,en",
    levels: Annotated[str, typer.Option(help="Levels of difficulty, comma-separated.")] = "1,2,3",
    split: Annotated[str, typer.Option(help="train, held-out, or all.")] = "all",
    held_out: Annotated[float, typer.Option(callback=probability, help="Share of held-out problems.")] = 0.1,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the draws.")] = 0,
    teacher: Annotated[
        str | None,
        typer.Option(help="Model that rewords the questions: a folder, a .gguf file, or a URL.", show_default=False),
    ] = None,
    temperature: Annotated[float, typer.Option(callback=not_negative, help="Temperature of the teacher.")] = 0.8,
    *,
    engine: Engine,
    as_json: JsonOption = False,
) -> None:
    """Make questions with computed answers; resumes after an interruption.

    Example: armillary post synthesize --n 4000 --split train --out questions
    """
    from armillary.generate import Sampling, open_backend
    from armillary.post.synthesize import SynthesisOptions, parse_levels, synthesize

    options = SynthesisOptions(
        n,
        tuple(filter(None, (families or "").split(","))),
        tuple(language.split(",")),
        parse_levels(levels),
        seed,
        split,
        held_out,
    )
    sampling = Sampling(max_new_tokens=300, temperature=temperature, top_p=0.95)
    opened = None if teacher is None else open_backend(teacher, engine.options, engine.name)
    reporter = Reporter()
    try:
        record = synthesize(
            folder, options, opened, lambda done, total, note: reporter("synthesize", done, total, note), sampling
        )
    finally:
        reporter.close()
        if opened is not None:
            opened.close()
    if as_json:
        return show_json(record)
    _print(folder, record)


def _print(folder: Path, record: dict[str, Any]) -> None:
    counts = record["counts"]
    out.print(f"{escape(str(folder / 'items.jsonl'))}: {counts['kept']:,} items of {counts['decided']:,}")
    for reason, count in counts["dropped"].items():
        out.print(f"  dropped, {reason}: {count:,}")
    if share := counts["verified"]:
        out.print(f"  verified: {share['share']:.1%} ({share['low']:.1%} to {share['high']:.1%}) of {share['of']:,}")
