"""The verbs of planning: the best layout of a model, predictions for tables of layouts, and their errors."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from armillary.cli.app import JsonOption, app
from armillary.cli.show.screen import out, show_json, show_table

plan = typer.Typer(no_args_is_help=True, help="Which layout to use, whether it fits, how long a step takes.")
app.add_typer(plan, name="plan")

Table = Annotated[Path, typer.Argument(help="CSV with the columns of published training speed.", show_default=False)]


@plan.command("estimate")
def estimate(
    layouts: Table,
    out_file: Annotated[Path, typer.Option("--out", help="CSV to write, with columns pred_*.", show_default=False)],
    as_json: JsonOption = False,
) -> None:
    """Predict step time, throughput and memory for each row of a table of layouts.

    Example: armillary plan estimate layouts.csv --out predicted.csv
    """
    from armillary.plan import estimate

    found = estimate(layouts, out_file)
    if as_json:
        return show_json(found)
    out.print(
        f"{out_file}: {found['predicted']} of {found['rows']} rows predicted; the reason for each other row is in its "
        "column pred_reason",
        highlight=False,
    )


@plan.command("validate")
def validate(
    table: Table,
    factors: Annotated[
        Path | None, typer.Option(help="File to write with the factors that fit all rows.", show_default=False)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Compare predictions with published runs, each publication predicted by constants from all others.

    Example: armillary plan validate training_throughput.csv
    """
    from armillary.plan import validate

    found = validate(table, factors)
    if as_json:
        return show_json(found.to_json())
    columns = ["", "rows", "median error", "90th percentile", "median signed", "in the 90 % interval"]
    show_table(
        "throughput, each publication left out in turn",
        columns,
        [
            [line.name, line.rows, *(f"{100 * v:.1f} %" for v in (line.median, line.p90, line.signed, line.coverage))]
            for line in (*found.sources, *found.kinds, found.overall)
        ],
    )
    show_table(
        "peak memory",
        ["", "rows", "median error", "90th percentile", "median signed", "within 5 %"],
        [
            [line.name, line.rows, *(f"{100 * v:.1f} %" for v in (line.median, line.p90, line.signed, line.coverage))]
            for line in found.memory
        ],
    )
    flags = found.out_of_memory
    out.print(
        f"out of memory: {flags['flagged']} of {flags['out_of_memory']} flagged; "
        f"{flags['flagged_wrongly']} of {flags['ran']} that ran flagged wrongly",
        highlight=False,
    )
    for sweep in found.sweeps:
        out.print(
            f"{sweep['model']}, {sweep['layouts']} layouts: the chosen one ({sweep['chosen']}) is "
            f"{100 * sweep['loss']:.1f} % slower than the best ({sweep['best']})",
            highlight=False,
        )
    for reason, count in found.unpredicted.items():
        out.print(f"{count} rows without a prediction: {reason}", style="dim", highlight=False)
