"""The items and seeds that a comparison of two models needs, stated before it is made.

Two questions are apart. Whether *these two models* differ needs enough items. Whether *their recipes* differ also needs
several seeds of each, because two seeds of one recipe differ by themselves (`evaluate.plan_comparison`).
"""

from __future__ import annotations

from typing import Any

from armillary.evaluate import ComparisonPlan, items_needed, plan_comparison


def needed(difference: float, items: int) -> dict[str, Any]:
    """What it takes to detect ``difference`` in accuracy with a chance of 0.8, and the ``items`` at hand.

    ``needed`` is the number of items for these two models. ``seeds`` is the number of seeds of each recipe with the
    items at hand, None if no number is enough; ``rows`` has the items for some numbers of seeds. The noise is assumed:
    ``discordant`` is the share of items on which the models differ, ``seed_std`` the deviation between seeds.
    """
    plan = plan_comparison(ComparisonPlan(difference, items=max(items, 2)))
    return {
        "difference": difference,
        "items": items,
        "needed": items_needed(difference, plan["discordant"], plan["power"]),
        **{name: plan[name] for name in ("discordant", "seed_std", "power", "seeds", "rows")},
    }


def said_needed(task: str, row: dict[str, Any]) -> str:
    """One line on what the comparison on a set needs."""
    enough = "are enough" if row["items"] >= row["needed"] else "are too few"
    seeds = "no number of seeds" if row["seeds"] is None else f"{row['seeds']} seeds of each recipe"
    return (
        f"to see a difference of {row['difference']:g} on {task} needs {row['needed']} items; the {row['items']} items "
        f"{enough} for these two models, and {seeds} would do to compare the recipes"
    )
