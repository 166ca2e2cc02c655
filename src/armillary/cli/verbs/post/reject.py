"""The verb ``post reject``: a model's own verified answers as training data."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from armillary.cli.app import JsonOption
from armillary.cli.backends import Engine, ModelArgument, opens_models
from armillary.cli.show.screen import err, out, show_json, show_table
from armillary.cli.values import fraction


@opens_models
def reject(
    model: ModelArgument,
    items: Annotated[Path, typer.Option(help="Questions with checks, in any format.", show_default=False)],
    folder: Annotated[Path, typer.Option("--out", "-o", help="Folder of the stage; resumes.", show_default=False)],
    samples: Annotated[int, typer.Option(min=1, help="Answers per question and temperature.")] = 4,
    temperature: Annotated[
        list[float] | None,
        typer.Option(help="Sampling temperature; repeatable (default: 0.6 and 1).", show_default=False),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 512,
    most: Annotated[int, typer.Option(min=1, help="Maximum answers kept per question.")] = 4,
    same: Annotated[
        float, typer.Option(callback=fraction, help="Minimum similarity of answers with the same reasoning.")
    ] = 0.7,
    easy: Annotated[float, typer.Option(callback=fraction, help="Minimum pass rate of an easy question.")] = 1.0,
    easy_share: Annotated[float, typer.Option(callback=fraction, help="Share of the easy questions to keep.")] = 0.25,
    hard: Annotated[float, typer.Option(callback=fraction, help="Maximum pass rate of an impossible question.")] = 0.0,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the samples.")] = 0,
    *,
    engine: Engine,
    as_json: JsonOption = False,
) -> None:
    """Sample answers to each question, and keep right ones with different reasoning.

    Example: armillary post reject ./chat --items questions.jsonl --out sampled
    """
    from armillary.generate import open_backend
    from armillary.post import RejectOptions, SampleOptions
    from armillary.post import reject as rejected
    from armillary.post.records import REFUSALS

    options = RejectOptions(
        SampleOptions(samples, tuple(temperature or (0.6, 1.0)), max_new_tokens, seed),
        easy,
        easy_share,
        hard,
        same,
        most,
        progress=lambda done: err.print(f"reject: {done} questions done", highlight=False),
    )
    with closing(open_backend(model, engine.options, engine.name)) as opened:
        record = rejected(items, folder, opened, options)
    if as_json:
        return show_json(record)
    counts = record["counts"]
    columns = ["questions", "kept", "answers", "easy", "impossible", "unreadable", "refused"]
    show_table(
        f"{folder}: {counts['kept']} answers to {counts['decided'] - sum(counts['dropped'].values())} of "
        f"{counts['decided']} questions",
        ["domain", "family", "level", "language", "pass rate", "low", "high", *columns],
        [
            [
                *(row["domain"], row["family"], row["level"], row["language"]),
                *((row.get("pass_rate") or {}).get(name) for name in ("value", "low", "high")),
                *(row[name] for name in columns),
            ]
            for row in counts["yield"]
        ],
    )
    for reason in REFUSALS:
        if count := counts["dropped"].get(reason):
            out.print(f"  dropped, {reason}: {count:,}")
    out.print(f"answers: {escape(str(folder / 'items.jsonl'))}", highlight=False)
