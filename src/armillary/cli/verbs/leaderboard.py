"""The verb ``leaderboard``: ranks examinations."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from armillary.cli.app import JsonOption, app
from armillary.cli.show.screen import err, out, show_json, show_table
from armillary.cli.values import probability
from armillary.recipe import Language, counted


@app.command("leaderboard")
def leaderboard(
    results: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Folders of examinations, or folders of such folders (default: the current one).", show_default=False
        ),
    ] = None,
    html: Annotated[Path | None, typer.Option(help="HTML page to write.", show_default=False)] = None,
    language: Annotated[Language, typer.Option(help="Language of the page.")] = "en",
    level: Annotated[float, typer.Option(callback=probability, help="Confidence level of intervals and ranks.")] = 0.95,
    across_settings: Annotated[
        bool, typer.Option("--across-settings", help="Compare even if prompts, extractors or generation differ.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Rank models by their examinations; ties share a rank.

    Example: armillary leaderboard exam-a exam-b --html board.html
    """
    from armillary.evaluate.leaderboard import rank, read_results

    board = rank(read_results(results or [Path()]), level, across_settings)
    if html is not None:
        from armillary.report.leaderboard import write_leaderboard

        write_leaderboard(board, html, language)
    if as_json:
        return show_json(asdict(board))
    for table in board.tables:
        show_table(
            f"{table.task}: {table.metric}, {counted(table.items, 'item')}",
            ["model", "rank", "score", "low", "high", "better than"],
            [
                [one.model, one.rank, one.score.value, one.score.low, one.score.high, ", ".join(one.better_than)]
                for one in table.standings
            ],
        )
        for note in table.notes:
            err.print(f"[yellow]note[/yellow] {escape(note)}", highlight=False)
    for note in board.notes:
        err.print(f"[yellow]note[/yellow] {escape(note)}", highlight=False)
    if html is not None:
        out.print(f"page written to {escape(str(html))}", highlight=False)
