"""The verb ``post merge``: models that were trained from one base become one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from armillary.cli.screen import JsonOption, Reporter, out, show_json, show_table


def merge(
    base: Annotated[Path, typer.Argument(help="Folder of the model that all were trained from.", show_default=False)],
    models: Annotated[list[Path], typer.Argument(help="Folders of the models to merge.", show_default=False)],
    folder: Annotated[Path, typer.Option("--out", "-o", help="New folder of the merged model.", show_default=False)],
    method: Annotated[str, typer.Option(help="linear, task, slerp, ties, dare or weighted.")] = "linear",
    weights: Annotated[
        str | None,
        typer.Option(
            help="Comma-separated, one per model; scores for 'weighted' (default: equal).", show_default=False
        ),
    ] = None,
    density: Annotated[float, typer.Option(help="Share of each difference that ties and dare keep.")] = 0.5,
    scale: Annotated[float, typer.Option(help="Factor of the difference that task, ties and dare add.")] = 1.0,
    rescale: Annotated[str, typer.Option(help="How dare makes up for what it drops: density or norm.")] = "density",
    base_score: Annotated[float, typer.Option(help="Score of the base, for 'weighted'.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Of the entries that dare drops.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Merge models that were trained from one base; refuses where tokenizer, architecture, shapes or base differ.

    Example: armillary post merge ./base ./math ./code --method ties --density 0.3 --out merged
    """
    from armillary.post.merge import MergeOptions, merge, read_weights

    options = MergeOptions(method, read_weights(weights), density, scale, rescale, base_score, seed)
    reporter = Reporter()
    try:
        record = merge(
            base, models, folder, options, lambda d, t: reporter("merge", d, t, f"{d >> 20} of {t >> 20} MiB")
        )
    finally:
        reporter.close()
    if as_json:
        return show_json(record)
    show_table(
        f"{folder}: {method} of {len(models)} over {base}",
        ["model", "weight", "weights' sha256"],
        [
            [str(model), weight, ", ".join(digest[:16] for digest in one["sha256"].values())]
            for model, weight, one in zip(models, record["settings"]["weights"], record["inputs"][1:], strict=True)
        ],
    )
    for note in record["notes"]:
        out.print(escape(note), highlight=False)
