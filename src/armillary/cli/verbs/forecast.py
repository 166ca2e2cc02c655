"""The verbs ``forecast record`` and ``forecast judge``: a run's predicted score on a task, and its real score."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from armillary.cli.app import JsonOption, app
from armillary.cli.show.screen import out, show_json, show_table
from armillary.cli.show.studies import show_verdict
from armillary.cli.values import probability
from armillary.cli.workspaces import DatabaseOption

forecast_app = typer.Typer(help="Forecasts of examinations, recorded before and judged after.", no_args_is_help=True)
app.add_typer(forecast_app, name="forecast")

StoreOption = Annotated[Path, typer.Option("--store", help="Folder of the store that has the run.", show_default=False)]
RunOption = Annotated[str, typer.Option(help="Id of the run.", show_default=False)]
TaskOption = Annotated[str, typer.Option(help="Task of the examination.", show_default=False)]


@forecast_app.command("record")
def record(
    law: Annotated[Path, typer.Argument(help="A law file from 'fit examination' or 'fit gain'.", show_default=False)],
    at: Annotated[
        Path,
        typer.Option(
            help="CSV with one row: the run's loss, its predicted loss, or the size of its data.", show_default=False
        ),
    ],
    run: RunOption,
    task: TaskOption,
    store: StoreOption,
    database: DatabaseOption = None,
    interval: Annotated[
        float, typer.Option(callback=probability, help="Probability that the interval covers the score.")
    ] = 0.9,
    as_json: JsonOption = False,
) -> None:
    """Record a forecast of a run's score on a task; a record is never rewritten.

    Example: armillary forecast record law.json --at loss.csv --run RUN --task mmlu --store results/store
    """
    from armillary.study.examinations import Question, record_forecast
    from armillary.study.examined import open_store

    recorded = record_forecast(open_store(store, database), Question(run, task), law, at, interval)
    if as_json:
        return show_json(recorded)
    score = recorded["score"]
    show_table(
        f"forecast of run {run}",
        ["task", "predicted", "low", "high", "recorded"],
        [[task, score["predicted"], score["low"], score["high"], recorded["recorded_at"]]],
    )
    if not recorded["before_the_run"]:
        out.print(
            "the run had already begun, so this is a forecast of its examination, not of the run", highlight=False
        )


@forecast_app.command("judge")
def judge(
    examination: Annotated[Path, typer.Argument(help="Folder of the run's examination.", show_default=False)],
    run: RunOption,
    task: TaskOption,
    store: StoreOption,
    database: DatabaseOption = None,
    metric: Annotated[str | None, typer.Option(help="Metric, if the task has several.", show_default=False)] = None,
    as_json: JsonOption = False,
) -> None:
    """Compare a recorded forecast with the examination, and record the verdict.

    Example: armillary forecast judge exam-target --run RUN --task mmlu --store results/store
    """
    from armillary.evaluate import read_examination
    from armillary.study.examinations import Question, judge_forecast
    from armillary.study.examined import open_store

    verdict = judge_forecast(open_store(store, database), Question(run, task), read_examination(examination), metric)
    if as_json:
        return show_json(verdict)
    show_verdict(verdict)
