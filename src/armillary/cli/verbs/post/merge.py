"""The verb ``post merge``: merges models trained from one base."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from armillary.cli.app import JsonOption
from armillary.cli.show.screen import Reporter, out, show_json, show_table
from armillary.cli.values import not_negative, nucleus, positive


def merge(
    base: Annotated[Path, typer.Argument(help="Folder of the models' common base.", show_default=False)],
    models: Annotated[list[Path], typer.Argument(help="Folders of the models to merge.", show_default=False)],
    folder: Annotated[Path, typer.Option("--out", "-o", help="New folder of the merged model.", show_default=False)],
    method: Annotated[str, typer.Option(help="linear, task, slerp, ties, dare or weighted.")] = "linear",
    weights: Annotated[
        str | None,
        typer.Option(
            help="Comma-separated, one per model; scores for 'weighted' (default: equal).", show_default=False
        ),
    ] = None,
    density: Annotated[
        float, typer.Option(callback=nucleus, help="Share of each task vector that ties and dare keep.")
    ] = 0.5,
    scale: Annotated[
        float, typer.Option(callback=positive, help="Factor on the task vectors that task, ties and dare add.")
    ] = 1.0,
    rescale: Annotated[
        str, typer.Option(help="How dare compensates for dropped entries: density or norm.")
    ] = "density",
    base_score: Annotated[float, typer.Option(callback=not_negative, help="Score of the base, for 'weighted'.")] = 0.0,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the entries that dare drops.")] = 0,
    search: Annotated[
        Path | None,
        typer.Option(
            help="Conversations (JSONL); search the weights with the lowest loss on them.", show_default=False
        ),
    ] = None,
    evaluations: Annotated[int, typer.Option(min=1, help="Merges to try with --search.")] = 16,
    as_json: JsonOption = False,
) -> None:
    """Merge models trained from one base; refuses if tokenizer, architecture, shapes or base differ.

    With --search, the best single model is kept unless a merge is significantly better (paired interval).

    Example: armillary post merge ./base ./math ./code --method ties --density 0.3 --out merged
    """
    from armillary.post.merge import MergeOptions, Search, held_out_loss, merge, read_weights, search_merge

    options = MergeOptions(method, read_weights(weights), density, scale, rescale, base_score, seed)
    reporter = Reporter()
    if search is not None:
        score, name = held_out_loss(search, models[0])
        asked = Search(score, name, evaluations, progress=lambda d, t, note: reporter("search", d, t, note))
        try:
            found = search_merge(base, models, folder, options, asked)
        finally:
            reporter.close()
        if as_json:
            return show_json(found)
        gap = found["difference"]
        show_table(
            f"{folder}: {found['decision']}",
            ["best single model", "weights of the best merge", "scale", "difference", "low", "high"],
            [
                [
                    found["best_single"],
                    ", ".join(f"{weight:.3f}" for weight in found["weights"]),
                    *(found["scale"], gap["value"], gap["low"], gap["high"]),
                ]
            ],
        )
        return None
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
