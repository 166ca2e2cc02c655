"""The verb ``evaluate contest``: the official score of a file of predictions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from armillary.cli.screen import JsonOption, err, out, show_json, show_table


def contest(
    name: Annotated[str, typer.Argument(help="space2024, ched or nlpcc2024-5.", show_default=False)],
    score: Annotated[Path, typer.Option(help="A file of predictions in the contest's own format.", show_default=False)],
    gold: Annotated[Path, typer.Option(help="The file with the true answers.", show_default=False)],
    as_json: JsonOption = False,
) -> None:
    """Score predictions as the contest does.

    Example: armillary evaluate contest ched --score predictions.jsonl --gold valid.jsonl
    """
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
        f"{contest_named(name).title}, {found.items} items",
        ["metric", "subset", "value", "low", "high", "n"],
        [[one.metric, one.subset, one.value, one.low, one.high, one.n] for one in found.scores],
    )
    out.print(f"{escape(str(score))} against {escape(str(gold))}", highlight=False)
