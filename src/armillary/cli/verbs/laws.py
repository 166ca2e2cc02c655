"""The verbs on laws: fit, predict, optimise, compare, plan the next run, reproduce. They read and write tables.

None of them needs a recipe or a corpus, and none imports torch.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from armillary.cli.app import JsonOption, app
from armillary.cli.show.screen import err, out, show_json, show_table
from armillary.cli.values import positive, probability, share
from armillary.cli.values import size as size_of
from armillary.recipe import counted

fit_app = typer.Typer(help="Laws from tables of runs.", no_args_is_help=True)
app.add_typer(fit_app, name="fit")

LawOut = Annotated[Path, typer.Option("--out", "-o", help="The law file to write.", show_default=False)]
LawArgument = Annotated[Path, typer.Argument(help="A law file from 'fit'.", show_default=False)]
IntervalOption = Annotated[
    float, typer.Option(callback=probability, help="Probability that each interval covers one new run.")
]
SizeOption = Annotated[
    str | None,
    typer.Option(callback=size_of, help="Parameters of the model to predict, such as 400M.", show_default=False),
]
TokensOption = Annotated[
    str | None,
    typer.Option(callback=size_of, help="Mixture laws: training tokens of that model, such as 8B.", show_default=False),
]
WarmupOption = Annotated[
    int | None,
    typer.Option("--warmup-steps", min=0, help="Steps of linear warm-up from 0, if curves begin after it."),
]
ColumnsOption = Annotated[
    str | None,
    typer.Option(
        "--columns",
        help="Comma-separated: the inputs of the law, then the losses it predicts (default: parameters, tokens and all "
        "losses with a known name).",
        show_default=False,
    ),
]
PointsOption = Annotated[Path, typer.Option("--points", help="CSV, one row per run.", show_default=False)]


def with_progress(act: Callable[[], Any]) -> Any:
    """Call ``act``; show the elapsed seconds on a terminal, and print each warning as one line on standard error."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    working = Progress(*columns, console=err, transient=True, disable=not err.is_terminal)
    with warnings.catch_warnings(record=True) as caught, working:
        warnings.simplefilter("always")
        working.add_task("working", total=None)
        result = act()
    for text in dict.fromkeys(str(warning.message) for warning in caught):
        err.print(f"[yellow]warning[/yellow] {escape(text)}", highlight=False)
    return result


def fit(act: Callable[[], Any], path: Path, as_json: bool) -> None:
    """Fit, write the law file, and print the result."""
    from armillary.laws import workbench

    workbench.check_law_out(path)
    summary = with_progress(lambda: workbench.save(path, act()))
    for line in workbench.columns_read(summary):
        err.print(escape(line), highlight=False)
    if as_json:
        return show_json({"law": str(path), **summary})
    for title, rows in workbench.tables(summary):
        show_rows(title, rows)
    out.print(f"law written to {escape(str(path))}", highlight=False)


def show_rows(title: str, rows: list[dict[str, Any]]) -> None:
    """Print rows with the same keys as a table, transposed if there are too many columns."""
    columns = [column.replace("_", " ") for column in rows[0]]
    body = [list(row.values()) for row in rows]
    if len(columns) > max(7, len(rows)):
        columns, body = (
            [columns[0], *map(str, [row[0] for row in body])],
            [[column, *(row[i] for row in body)] for i, column in enumerate(columns) if i > 0],
        )
    show_table(title, columns, body)


@fit_app.command("mixture")
def fit_mixture(
    runs: Annotated[Path, typer.Option(help="CSV: index, one column per training domain.", show_default=False)],
    losses: Annotated[Path, typer.Option(help="CSV: index, one column per validation domain.", show_default=False)],
    path: LawOut,
    size_column: Annotated[
        str | None, typer.Option(help="Column of the models' parameters, for runs at several sizes.")
    ] = None,
    tokens_column: Annotated[
        str | None, typer.Option(help="Column of the tokens that each run was trained on, with the sizes.")
    ] = None,
    columns: Annotated[
        str | None, typer.Option(help="Comma-separated: the losses (default: all with a known name).")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """From mixtures of training domains to losses of validation domains.

    Example: armillary fit mixture --runs M.csv --losses L.csv --out law.json
    """
    from armillary.laws import workbench

    fit(
        lambda: workbench.fit_mixture(runs, losses, size_column, tokens_column, workbench.names(columns)), path, as_json
    )


@fit_app.command("scaling")
def fit_scaling(
    points: PointsOption,
    path: LawOut,
    columns: ColumnsOption = None,
    form: Annotated[
        str,
        typer.Option(
            help="auto: all forms that the columns allow, weighted by leaving out the largest runs. Or one of "
            "chinchilla, shared, kaplan, ratio, interaction, data-constrained, data-constrained-ratio, overfitting, "
            "overfitting-ratio, active, active-ratio, idle, moe, context, context-factor, width-depth (docs/laws.md); "
            "step-law or basin with columns of learning rate and batch size."
        ),
    ] = "auto",
    as_json: JsonOption = False,
) -> None:
    """From parameters, tokens and more to losses.

    Example: armillary fit scaling --points P.csv --columns params,tokens,loss --out law.json
    """
    from armillary.laws import workbench

    fit(lambda: workbench.fit_scaling(points, workbench.names(columns), form), path, as_json)


@fit_app.command("anneal")
def fit_anneal(
    curves: Annotated[Path, typer.Option(help="Folder of SIZE/SCHEDULE.csv with step,lr,loss.", show_default=False)],
    path: LawOut,
    warmup_steps: WarmupOption = 0,
    as_json: JsonOption = False,
) -> None:
    """From the learning-rate curve to the loss curve.

    Example: armillary fit anneal --curves curves --warmup-steps 2160 --out law.json
    """
    from armillary.laws import workbench

    fit(lambda: workbench.fit_anneal(curves, warmup_steps or 0), path, as_json)


@fit_app.command("examination")
def fit_examination(
    points: PointsOption,
    path: LawOut,
    columns: Annotated[
        str,
        typer.Option(help="Comma-separated: validation loss, task loss (optional), accuracy.", show_default=False),
    ],
    items: Annotated[int, typer.Option(min=1, help="Items of the task.", show_default=False)],
    chance: Annotated[
        float, typer.Option(callback=share, help="Accuracy of a guess, such as 0.25 for four options.")
    ] = 0.0,
    as_json: JsonOption = False,
) -> None:
    """From validation losses to the score of an examination; refuses if all runs are at chance.

    Example: armillary fit examination --points P.csv --columns loss,task_loss,accuracy --chance 0.25 --items 1000
    --out law.json
    """
    from armillary.laws import workbench

    fit(lambda: workbench.fit_examination(points, workbench.names(columns) or [], chance, items), path, as_json)


@fit_app.command("gain")
def fit_gain(
    points: PointsOption,
    path: LawOut,
    columns: Annotated[
        str, typer.Option(help="Comma-separated: size of the data, and score or loss.", show_default=False)
    ],
    items: Annotated[int, typer.Option(min=0, help="Held-out items of each run, for a score.")] = 0,
    chance: Annotated[
        float, typer.Option(callback=share, help="Accuracy of a guess, such as 0.25 for four options.")
    ] = 0.0,
    form: Annotated[str, typer.Option(help="What the second column is: score or loss.")] = "score",
    as_json: JsonOption = False,
) -> None:
    """From fine-tuning runs on 1/8, 1/4 and 1/2 of the data to the run on all of it.

    Example: armillary fit gain --points parts.csv --columns examples,accuracy --items 500 --out gain.json
    """
    from armillary.laws import GainLaw, workbench

    law = GainLaw(form=form, chance=chance, items=items)
    fit(lambda: workbench.fit_gain(points, workbench.names(columns) or [], law), path, as_json)


@app.command("predict-law")
def predict_law(
    law: LawArgument,
    at: Annotated[Path, typer.Option(help="CSV of the rows to predict, with the law's input columns.")],
    path: Annotated[Path, typer.Option("--out", "-o", help="The CSV to write.")],
    interval: IntervalOption = 0.9,
    size: SizeOption = None,
    tokens: TokensOption = None,
    given: Annotated[
        Path | None, typer.Option(help="Annealing laws: a measured curve step,lr,loss at this size.")
    ] = None,
    warmup_steps: WarmupOption = None,
    measured: Annotated[
        Path | None,
        typer.Option(help="CSV of measured losses to compare with: errors, and how many intervals cover."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Predict runs with a law: each loss with its interval and the extrapolation.

    Example: armillary predict-law law.json --at NEW.csv --interval 0.9 --out pred.csv
    """
    from armillary.laws import workbench

    workbench.check_out(path, law, at, measured)
    options = {"size": size, "tokens": tokens, "given": given, "warmup_steps": warmup_steps}
    rows = with_progress(lambda: workbench.predict(law, at, interval, **options))  # type: ignore[arg-type]
    compared = (
        None if measured is None else with_progress(lambda: workbench.measured_against(law, at, rows, measured, size))
    )
    rows.write(path)
    if as_json:
        found = {"predictions": str(path), "rows": len(rows.rows), "columns": rows.columns}
        return show_json(found if compared is None else found | {"measured": compared})
    if compared is not None:
        show_rows(f"predicted and measured, {interval:.0%} intervals", compared["losses"])
        if compared["not_measured"] or compared["not_predicted"]:
            out.print(
                f"{counted(compared['not_measured'], 'prediction')} without a measurement, "
                f"{counted(compared['not_predicted'], 'measurement')} without a prediction",
                highlight=False,
            )
    out.print(f"{counted(len(rows.rows), 'row')} written to {escape(str(path))}", highlight=False)


@app.command("optimise-mixture")
def optimise_mixture(
    law: LawArgument,
    target: Annotated[Path, typer.Option(help="YAML: a weight for each validation domain in the target.")],
    path: Annotated[Path, typer.Option("--out", "-o", help="The YAML to write.")],
    limits: Annotated[
        Path | None,
        typer.Option(help="YAML: floors, ceilings, max_epochs, domain_tokens, budget_tokens, natural."),
    ] = None,
    size: SizeOption = None,
    tokens: TokensOption = None,
    candidates: Annotated[int, typer.Option(min=1, help="Number of distinct mixtures to return.")] = 3,
    as_json: JsonOption = False,
) -> None:
    """The best mixture for a target within limits, the chance that it beats others, and the weights that matter.

    Example: armillary optimise-mixture law.json --target t.yaml --limits l.yaml --out mixture.yaml
    """
    from armillary.laws import decisions, workbench

    workbench.check_out(path, law, target, limits)
    found = with_progress(lambda: decisions.optimise(law, target, limits, size, candidates, tokens))
    decisions.write_yaml(path, found)
    if as_json:
        return show_json(found)
    flat = [[name, found["weights"][name], *value.values()] for name, value in found["flat"].items()]
    show_table("mixture", ["domain", "weight", "flat from", "to", "matters"], flat)
    for name, better in found["better_than"].items():
        out.print(f"better than the {name} mixture with probability {better:.2f}")
    out.print(f"mixture written to {escape(str(path))}", highlight=False)


def show(act: Callable[[], dict[str, Any]], as_json: bool) -> None:
    """Print an answer: its tables, and one line per single value."""
    from armillary.laws import workbench

    found = with_progress(act)
    if as_json:
        return show_json(found)
    for title, rows in workbench.tables(found):
        show_rows(title, rows)
    for name, value in found.items():
        if not isinstance(value, list):
            parts = value.items() if isinstance(value, dict) else [("", value)]
            values = ", ".join(f"{k} {v:.5g}".strip() if isinstance(v, float) else f"{k} {v}".strip() for k, v in parts)
            out.print(f"{name.replace('_', ' ')}: {values}", highlight=False)
    out.print("intervals (low to high) hold with a probability of 90%", highlight=False)


@app.command("best-schedule")
def best_schedule(
    law: LawArgument,
    size: Annotated[str, typer.Option(callback=size_of, help="Parameters of the model, such as 400M.")],
    steps: Annotated[int, typer.Option(min=1, help="Total steps, including the warm-up.")],
    given: Annotated[Path | None, typer.Option(help="A measured curve step,lr,loss at this size.")] = None,
    peak_lr: Annotated[
        float | None,
        typer.Option(
            callback=positive,
            help="Highest rate (default: that of the curves at this size, or the best between them if they differ).",
        ),
    ] = None,
    path: Annotated[Path | None, typer.Option("--out", "-o", help="CSV of step,lr to write the schedule to.")] = None,
    as_json: JsonOption = False,
) -> None:
    """The best learning-rate schedule for a budget, and what stopping early or continuing would cost.

    Example: armillary best-schedule anneal-law.json --size 400M --steps 24000 --given constant.csv --out schedule.csv
    """
    from armillary.laws import decisions, workbench

    if path is not None:
        workbench.check_out(path, law, given)
    show(lambda: decisions.schedule(law, size, steps, given, peak_lr, path), as_json)


@app.command("best-lr")
def best_lr(
    law: LawArgument,
    params: Annotated[str, typer.Option(callback=size_of, help="Parameters of the model, such as 1B.")],
    tokens: Annotated[str, typer.Option(callback=size_of, help="Training tokens, such as 100B.")],
    as_json: JsonOption = False,
) -> None:
    """The best learning rate and batch size, their uncertainty, and the tolerance around them.

    Example: armillary best-lr step-law.json --params 1B --tokens 100B
    """
    from armillary.laws import decisions

    show(lambda: decisions.hyperparameters(law, params, tokens), as_json)


@app.command()
def compare(
    points: PointsOption,
    at: Annotated[str, typer.Option(help="Parameters and tokens of the target, such as 7B,4T.")],
    family_column: Annotated[str, typer.Option(help="Column that names each run's family.")] = "family",
    columns: ColumnsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare architectures or recipes with the first one at a target scale: compute multiplier, and which is better.

    Example: armillary compare --points runs.csv --family-column family --columns params,tokens,loss --at 7B,140B
    """
    from armillary.laws import decisions, workbench

    show(lambda: decisions.compare(points, workbench.names(columns), family_column, at.split(",")), as_json)


@app.command("next-run")
def next_run(
    law: LawArgument,
    target: Annotated[Path, typer.Option(help="CSV of the runs to predict, with the law's columns.")],
    budget: Annotated[float, typer.Option(callback=positive, help="FLOPs available for one more run, 6 N D.")],
    as_json: JsonOption = False,
) -> None:
    """The run that would narrow the prediction of the target most.

    Example: armillary next-run law.json --target larger.csv --budget 1e21
    """
    from armillary.laws import decisions

    show(lambda: decisions.next_run(law, target, budget), as_json)


@app.command()
def reproduce(
    name: Annotated[str, typer.Argument(help="A published result, such as chinchilla.", show_default=False)],
    data: Annotated[
        Path | None, typer.Option(envvar="ARMILLARY_PUBLISHED", help="Folder of the published measurements.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Reproduce a published result from its measured data: our numbers next to theirs.

    Names: regmix, chinchilla, ladder, multi-power-law, two-rates, step-law, gemstones, isoflop, data-constrained.

    Example: armillary reproduce chinchilla --data published
    """
    from dataclasses import asdict

    from armillary.laws.reproduce import coverage_table, figure_table, reproduce

    evaluation = with_progress(lambda: reproduce(name, data))
    if as_json:
        return show_json(asdict(evaluation))
    show_table(f"{name}: {evaluation.source}", *figure_table([evaluation]))
    if evaluation.forecasts:
        show_table("held-out forecasts, 90 % intervals", *coverage_table([evaluation]))
