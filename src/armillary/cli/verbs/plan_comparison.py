"""The verb ``evaluate plan``: the number of seeds and items that a comparison needs."""

from __future__ import annotations

from typing import Annotated

import typer

from armillary.cli.app import JsonOption
from armillary.cli.show.screen import out, show_json, show_table
from armillary.cli.values import probability


def plan(
    difference: Annotated[
        float, typer.Option(callback=probability, help="Difference to detect, such as 0.02.", show_default=False)
    ],
    discordant: Annotated[
        float | None,
        typer.Option(
            callback=probability,
            help="Share of items on which runs of the two recipes differ (default: measured, or 0.15).",
        ),
    ] = None,
    seed_std: Annotated[
        float | None,
        typer.Option(
            callback=probability,
            help="Standard deviation of a seed's score (default: measured, or 0.015).",
            show_default=False,
        ),
    ] = None,
    seeds_of: Annotated[
        str | None,
        typer.Option(help="Examinations of one recipe, comma-separated: one per seed.", show_default=False),
    ] = None,
    task: Annotated[str | None, typer.Option(help="Task of these examinations.", show_default=False)] = None,
    metric: Annotated[str | None, typer.Option(help="Metric, if the task has several.", show_default=False)] = None,
    items: Annotated[
        int | None, typer.Option(min=2, help="Available items (default: any number).", show_default=False)
    ] = None,
    power: Annotated[float, typer.Option(callback=probability, help="Required chance to detect the difference.")] = 0.8,
    as_json: JsonOption = False,
) -> None:
    """Compute how many seeds and items a comparison of two recipes needs.

    Example: armillary evaluate plan --difference 0.02 --seeds-of exam-s0,exam-s1,exam-s2 --task gsm8k --items 1319
    """
    from armillary.evaluate import ComparisonPlan, plan_comparison, read_examinations, scores_of
    from armillary.recipe import UsageError

    if seeds_of is not None and task is None:
        raise UsageError("--seeds-of needs --task: the task of those examinations")
    scores = scores_of(read_examinations(seeds_of), str(task), metric) if seeds_of is not None else None
    found = plan_comparison(ComparisonPlan(difference, discordant, seed_std, items, power), scores)
    if as_json:
        return show_json(found)
    show_table(
        f"to detect a difference of {difference:g} with probability {power:g}",
        ["seeds per recipe", "items"],
        [[row["seeds"], "no number is enough" if row["items"] is None else row["items"]] for row in found["rows"]],
    )
    out.print(
        f"discordant items {found['discordant']:.3f}, standard deviation of a seed {found['seed_std']:.4f}, flips "
        f"between seeds {found['flips']:.3f} ({found['from']})",
        highlight=False,
    )
    if items is not None:
        needed = found["seeds"]
        answer = "no number of seeds is enough" if needed is None else f"{needed} seeds per recipe are needed"
        out.print(f"with {items} items {answer}", highlight=False)
