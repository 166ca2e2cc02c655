"""The verb ``post run``: a whole post-training from its recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from armillary.cli.screen import JsonOption, Reporter, out, show_json, show_table


def run(
    recipe: Annotated[Path, typer.Argument(help="A post-training, YAML.", show_default=False)],
    folder: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder of the results (default: its name, beside it).")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Teach a model from questions to an examined model, each stage compared in pairs; resumes where it was stopped.

    Example: armillary post run teach.yaml --out taught
    """
    from armillary.launch import stopping
    from armillary.path.teach import teach
    from armillary.post.tuning import Handling
    from armillary.recipe import load_teaching

    teaching = load_teaching(recipe)
    where = folder or recipe.resolve().parent / teaching.name
    reporter = Reporter()
    try:
        with stopping() as stop:
            steps = teach(teaching, where, Handling(progress=reporter, stop=stop), reporter.say)
    finally:
        reporter.close()
    if as_json:
        return show_json([step.to_json() for step in steps])
    sets = list(steps[0].to_json()["scores"])
    rows = []
    for step in steps:
        scores, changes = step.to_json()["scores"], step.differences
        rows.append(
            [step.name, *(f"{scores[name]['right']:.3f}" for name in sets)]
            + [
                f"{changes[name]['value']:+.3f} ({changes[name]['low']:+.3f} to {changes[name]['high']:+.3f})"
                for name in sets
                if changes
            ]
            + ([] if changes else ["" for _ in sets])
            + ["yes" if step.taken else ""]
        )
    show_table(
        "Share of right answers, and the paired difference to the model taken before (95 % interval)",
        ["model", *sets, *(f"{name}, difference" for name in sets), "taken"],
        rows,
    )
    taken = next(step for step in reversed(steps) if step.taken)
    out.print(f"{escape(str(taken.model))}: armillary chat {escape(str(taken.model))}", highlight=False)
