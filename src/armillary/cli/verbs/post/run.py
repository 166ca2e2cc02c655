"""The verb ``post run``: all stages of a post-training from its recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from armillary.cli.app import JsonOption
from armillary.cli.show.screen import Reporter, out, show_json, show_table
from armillary.cli.workspaces import LanguageOption


def run(
    recipe: Annotated[Path, typer.Argument(help="Post-training recipe, YAML.", show_default=False)],
    folder: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder of the results (default: the recipe's name, next to it).")
    ] = None,
    language: LanguageOption = "en",
    as_json: JsonOption = False,
) -> None:
    """Run all stages of a post-training, from questions to an examined model, with paired comparisons; resumes.

    The folder also has a report, report.html (report.zh.html).

    Example: armillary post run teach.yaml --out taught
    """
    from armillary.launch import stopping
    from armillary.path.predicted import teach_and_judge
    from armillary.path.taught import write_page
    from armillary.post.tuning import Handling
    from armillary.recipe import load_teaching

    teaching = load_teaching(recipe)
    where = folder or recipe.resolve().parent / teaching.name
    reporter = Reporter()
    try:
        with stopping() as stop:
            steps = teach_and_judge(teaching, where, Handling(progress=reporter, stop=stop), reporter.say)
        page = write_page(where, teaching.name, steps, language)
    finally:
        reporter.close()
    if as_json:
        return show_json([step.to_json() for step in steps])
    sets, texts = list(steps[0].to_json()["scores"]), list(steps[0].to_json()["texts"])
    rows = []
    for step in steps:
        plain, changes = step.to_json(), step.differences
        rows.append(
            [
                step.name,
                *(f"{plain['scores'][name]['right']:.3f}" for name in sets),
                *(f"{plain['texts'][name]['bits_per_byte']:.4f}" for name in texts),
                *(_change(changes[name], 3) if changes else "" for name in sets),
                *(_change(changes[name], 4) if changes else "" for name in texts),
                "yes" if step.taken else "",
            ]
        )
    named = [*sets, *(f"{name}, bits per byte" for name in texts)]
    show_table(
        "Share of right answers, and the paired difference to the model taken before (95 % interval)",
        ["model", *named, *(f"{name}, difference" for name in named), "taken"],
        rows,
    )
    out.print(f"report  {escape(str(page))}", highlight=False)
    taken = next(step for step in reversed(steps) if step.taken)
    out.print(f"{escape(str(taken.model))}: armillary chat {escape(str(taken.model))}", highlight=False)


def _change(difference: dict[str, float], digits: int) -> str:
    value, low, high = (f"{difference[name]:+.{digits}f}" for name in ("value", "low", "high"))
    return f"{value} ({low} to {high})"
