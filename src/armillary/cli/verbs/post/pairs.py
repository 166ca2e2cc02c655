"""The verb ``post pairs``: pairs of answers from a model's own samples, ranked by a verifier or a judge."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from armillary.cli.app import JsonOption
from armillary.cli.backends import Engine, ModelArgument, opens_models
from armillary.cli.show.screen import Reporter, out, show_json


@opens_models
def pairs(
    model: ModelArgument,
    items: Annotated[Path, typer.Option(help="Questions, in any format.", show_default=False)],
    folder: Annotated[Path, typer.Option("--out", "-o", help="Folder for the pairs; resumes.", show_default=False)],
    judge: Annotated[
        str | None,
        typer.Option(help="A model that compares two answers, instead of each item's check.", show_default=False),
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="Answers per question and temperature.")] = 4,
    temperature: Annotated[
        list[float] | None,
        typer.Option(help="Sampling temperature; repeatable (default: 0.7 and 1).", show_default=False),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 512,
    per_question: Annotated[int, typer.Option(min=1, help="Maximum pairs per question.")] = 1,
    language: Annotated[str, typer.Option(help="Language of the judge's instruction: en or zh.")] = "en",
    seed: Annotated[int, typer.Option(min=0, help="Seed of the samples.")] = 0,
    *,
    engine: Engine,
    as_json: JsonOption = False,
) -> None:
    """Sample answers to each question, and pair right ones with wrong ones.

    Example: armillary post pairs ./chat --items questions.jsonl --out pairs
    """
    from armillary.evaluate import JudgeOptions
    from armillary.generate import open_backend
    from armillary.post.pairs import Files, PairOptions, pairs_by_judge, pairs_by_verifier
    from armillary.post.verify import verify

    options = PairOptions(samples, tuple(temperature or (0.7, 1.0)), max_new_tokens, per_question, seed)
    reporter = Reporter()
    files = Files(items, folder, reporter)
    try:
        with closing(open_backend(model, engine.options, engine.name)) as answering:
            if judge is None:
                made = pairs_by_verifier(files, answering, options, lambda item, text: verify(item, text).outcome)
            else:
                with closing(open_backend(judge, engine.options)) as arbiter:
                    made = pairs_by_judge(files, (answering, arbiter), options, JudgeOptions(language))
    finally:
        reporter.close()
    if as_json:
        return show_json(made.to_json())
    dropped = ", ".join(f"{count} {reason}" for reason, count in made.counts["dropped"].items()) or "none"
    out.print(
        f"{made.counts['kept']} pairs from {made.counts['decided']} questions; dropped: {dropped}; "
        f"{escape(str(made.pairs))}",
        highlight=False,
    )
