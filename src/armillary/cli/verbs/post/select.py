"""The verb ``post select``: selects pairs by the likelihood of their answers under the base model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from armillary.cli.app import JsonOption
from armillary.cli.show.screen import Reporter, out, show_json, show_table
from armillary.cli.values import nucleus, share
from armillary.cli.verbs.post.training import TemplateOption


def select(
    model: Annotated[Path, typer.Option(help="The base model: a Hugging Face folder.", show_default=False)],
    data: Annotated[Path, typer.Option(help="Pairs, one per line.", show_default=False)],
    folder: Annotated[Path, typer.Option("--out", "-o", help="Folder for both selections.", show_default=False)],
    chosen_from: Annotated[
        float, typer.Option(callback=share, help="Lowest quantile of the chosen answer's likelihood.")
    ] = 0.2,
    chosen_to: Annotated[float, typer.Option(callback=nucleus, help="Highest quantile of the same likelihood.")] = 0.9,
    rejected_from: Annotated[
        float, typer.Option(callback=share, help="Lowest quantile of the rejected answer's likelihood.")
    ] = 0.5,
    template: TemplateOption = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the random selection.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Select pairs by a model's likelihoods of their answers, and the same number at random for comparison.

    Example: armillary post select --model ./base --data pairs/items.jsonl --out selection
    """
    from armillary.post.select import Selection, select_pairs

    reporter = Reporter()
    try:
        found = select_pairs(
            data, model, folder, Selection((chosen_from, chosen_to), rejected_from, seed, template), reporter
        )
    finally:
        reporter.close()
    if as_json:
        return show_json(found.to_json())
    rows = [[name, means["chosen"], means["rejected"]] for name, means in found.counts["means"].items()]
    show_table("nats per token under the model", ["", "chosen", "rejected"], rows)
    out.print(
        f"{found.counts['selected']} of {found.counts['kept']} pairs, {found.counts['in_both']} also drawn at random; "
        f"{escape(str(found.selected))} and {escape(str(found.random))}",
        highlight=False,
    )
