"""The verbs of planning: the best layout of a model, predictions for tables of layouts, and their errors."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from armillary.cli.app import JsonOption, app
from armillary.cli.show.plans import show_plan
from armillary.cli.show.screen import err, out, show_json, show_table
from armillary.cli.values import size

plan = typer.Typer(invoke_without_command=True)
app.add_typer(plan, name="plan")

Table = Annotated[Path, typer.Argument(help="CSV with the columns of published training speed.", show_default=False)]


@plan.callback()
def find(
    context: typer.Context,
    model: Annotated[
        Path | None,
        typer.Option(help="Shape or run file (YAML), or a config.json (or its folder).", show_default=False),
    ] = None,
    cluster: Annotated[Path | None, typer.Option(help="YAML file of the cluster.", show_default=False)] = None,
    batch_tokens: Annotated[
        str | None, typer.Option(callback=size, help="Tokens of one optimizer step, such as 16M.", show_default=False)
    ] = None,
    seq: Annotated[int | None, typer.Option(min=2, help="Tokens of a sequence.", show_default=False)] = None,
    objective: Annotated[
        Literal["time", "cost"], typer.Option(help="Minimize the step time or the accelerator hours.")
    ] = "time",
    tokens: Annotated[
        str | None, typer.Option(callback=size, help="Tokens of the run (default: 20 per parameter).")
    ] = None,
    out_file: Annotated[
        Path | None, typer.Option("--out", help="Run file to write with the best layout.", show_default=False)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Find the best layout of a model on a cluster: whether it fits, how long a step takes, what the run costs.

    Example: armillary plan --model model.yaml --cluster cluster.yaml --batch-tokens 16777216 --seq 8192 --out run.yaml
    """
    if context.invoked_subcommand is not None:
        return
    from armillary.goodput import Reliability, best_goodput
    from armillary.laws import parse_size
    from armillary.plan import ClusterSpec, Question, make_plan, write_run_file
    from armillary.recipe import UsageError

    given = {"--model": model, "--cluster": cluster, "--batch-tokens": batch_tokens, "--seq": seq}
    missing = [name for name, value in given.items() if value is None]
    if model is None or cluster is None or batch_tokens is None or seq is None:
        raise UsageError(f"{', '.join(missing)} missing; see armillary plan --help")

    def goodput(where: ClusterSpec, accelerators: int) -> float:
        return best_goodput(
            Reliability.of_cluster(
                accelerators, where.mtbf_accelerator_hours, where.checkpoint_block_s, where.recovery_s
            )
        )

    wanted = None if tokens is None else float(parse_size(tokens))
    found = make_plan(Question(model, cluster, int(parse_size(batch_tokens)), seq, objective, wanted), goodput)
    show_json(found.to_json()) if as_json else show_plan(found.to_json())
    if out_file is not None:
        write_run_file(found, out_file)
        err.print(f"{out_file}: run file with this layout", highlight=False)


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
        Path | None, typer.Option(help="File for the factors fitted to all rows.", show_default=False)
    ] = None,
    chart: Annotated[
        Path | None, typer.Option(help="SVG or PNG file for a plot of predicted against measured.", show_default=False)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Compare predictions with published runs, each publication predicted by constants from all others.

    Example: armillary plan validate training_throughput.csv
    """
    from armillary.plan import validate

    found = validate(table, factors)
    if chart is not None:
        from armillary.report import write_speed_chart

        names = {"given": "layout given", "assumed": "parts assumed", "experts": "experts"}
        drawn = [(names[p.kind], p.measured, p.predicted) for p in found.points]
        write_speed_chart(chart, drawn)
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


@plan.command("measure")
def measure(
    out_file: Annotated[Path, typer.Option("--out", help="TOML file to write.", show_default=False)],
    processes: Annotated[int, typer.Option(min=1, help="Processes that measure in parallel.")] = 1,
    as_json: JsonOption = False,
) -> None:
    """Measure this machine: matrix products, attention, memory and collectives, as the accelerator of a plan.

    Example: armillary plan measure --out hardware.toml --processes 2
    """
    from armillary.parallel import measure_machine

    found = measure_machine(processes, out_file)
    if as_json:
        return show_json(found)
    peaks = ", ".join(f"{name} {value:.3g} TFLOP/s" for name, value in found["peak"].items())
    out.print(f"{out_file}: {peaks}, memory {found['bandwidth_gb_s']:.3g} GB/s", highlight=False)
    if processes > 1:
        out.print(
            f"all-gather {found['link_gb_s']:.3g} GB/s, {found['link_latency_us']:.3g} us a step", highlight=False
        )
