"""The verb ``evaluate contest``: models and files of predictions in contests of Chinese language processing."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from armillary.cli.app import JsonOption
from armillary.cli.backends import Engine, opens_models
from armillary.cli.show.screen import Reporter, err, out, show_json, show_table
from armillary.recipe import counted

Count = Annotated[int | None, typer.Option("--limit", min=1, help="Examine this many items, chosen by their hash.")]


@opens_models
def contest(
    name: Annotated[str, typer.Argument(help="space2024, ched or nlpcc2024-5.", show_default=False)],
    models: Annotated[
        list[str] | None, typer.Argument(help="Models to examine, as in 'armillary generate'.", show_default=False)
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder with the contest's files (docs/evaluate.md).", show_default=False)
    ] = None,
    method: Annotated[
        str,
        typer.Option(
            help="Comma-separated: few-shot, coarse-to-fine, self-consistency, combined with +; vote of all. "
            "plain always runs too, as their base."
        ),
    ] = "plain",
    limit: Count = None,
    shots: Annotated[int, typer.Option(min=1, help="Few-shot examples.")] = 4,
    similarity: Annotated[str, typer.Option(help="How examples are found: bm25 or embeddings.")] = "bm25",
    samples: Annotated[int, typer.Option(min=1, help="Answers for self-consistency.")] = 5,
    development: Annotated[
        int | None,
        typer.Option(min=1, help="Items of the train file that a vote learns from (default: 100).", show_default=False),
    ] = None,
    rival: Annotated[
        list[str] | None,
        typer.Option(help="NAME=FILE: predictions of another system, which also votes.", show_default=False),
    ] = None,
    chat: Annotated[bool, typer.Option("--chat/--text", help="Prompt with chat messages, or in plain text.")] = True,
    predictions: Annotated[
        Path | None,
        typer.Option(help="Folder for predictions and answers; a stopped run resumes from it.", show_default=False),
    ] = None,
    *,
    engine: Engine,
    score: Annotated[Path | None, typer.Option(help="Score this file of predictions.", show_default=False)] = None,
    gold: Annotated[Path | None, typer.Option(help="The true answers for --score.", show_default=False)] = None,
    as_json: JsonOption = False,
) -> None:
    """Examine models in a contest, or score a file of predictions with the contest's metrics.

    Example: armillary evaluate contest ched model.gguf --data ched --method plain,few-shot,vote

    Example: armillary evaluate contest ched --score predictions.jsonl --gold valid.jsonl
    """
    from armillary.evaluate.asking import Opening, opened
    from armillary.evaluate.contests import contest_named, named_files
    from armillary.evaluate.contests.run import ContestOptions, contest_parts, run_contest, write_entries
    from armillary.recipe import UsageError

    found = contest_named(name)
    if (score is None) != (gold is None) or (score is not None and models):
        raise UsageError("give models to examine, or --score with --gold")
    if score is not None and gold is not None:
        return _score(name, score, gold, as_json)
    options = ContestOptions(data, tuple(method.split(",")), limit, shots, samples, development, similarity)
    rivals = named_files(rival or [])
    if not models and not rivals:
        raise UsageError("give models to examine, or --score with --gold")
    parts = contest_parts(found, options)
    reporter = Reporter()
    try:
        opening = Opening(
            engine.options,
            engine.name,
            chat,
            predictions,
            lambda model, done, total: reporter(model, done, total, f"{done} of {counted(total, 'answer')}"),
        )
        with opened(models or [], opening) as askers:
            entries = run_contest(found, parts, askers, rivals, options)
    finally:
        reporter.close()
    if predictions is not None:
        write_entries(found, predictions, entries)
    if as_json:
        return show_json({"contest": name, "entries": [entry.to_json() for entry in entries]})
    show_table(
        f"{found.title}, {entries[0].scores[0].n} items",
        [
            "system",
            "method",
            found.main_metric,
            "low",
            "high",
            "gain",
            "low",
            "high",
            "tokens in",
            "out",
            "unread",
            "cut",
        ],
        [entry.row(found.main_metric) for entry in entries],
    )


def _score(name: str, score: Path, gold: Path, as_json: bool) -> None:
    from armillary.evaluate.contests import contest_named, score_file

    found = score_file(contest_named(name), score, gold)
    if found.missing:
        shown = ", ".join(found.missing[:5]) + (", …" if len(found.missing) > 5 else "")
        err.print(
            f"[yellow]warning[/yellow] {len(found.missing)} of {found.items} items have no prediction and count as "
            f"wrong: {escape(shown)}",
            highlight=False,
        )
    if as_json:
        return show_json(found.to_json())
    show_table(
        f"{contest_named(name).title}, {counted(found.items, 'item')}",
        ["metric", "subset", "value", "low", "high", "n"],
        [[one.metric, one.subset, one.value, one.low, one.high, one.n] for one in found.scores],
    )
    out.print(f"{escape(str(score))} against {escape(str(gold))}", highlight=False)
