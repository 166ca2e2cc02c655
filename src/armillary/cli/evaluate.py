"""The verbs of examinations. ``evaluate MODEL …`` is ``evaluate run MODEL …``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from typer.core import TyperGroup

from armillary.cli.contest import contest
from armillary.cli.screen import JsonOption, Reporter, app, out, show_json, show_table

EVALUATION = "ARMILLARY_EVALUATION"


class RunByDefault(TyperGroup):
    """A first word that is no verb is the model to examine."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the verb ``run`` before a model."""
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = ["run", *args]
        return super().parse_args(ctx, args)


evaluate_app = typer.Typer(
    help="Examine models: armillary evaluate MODEL --tasks gsm8k,cmmlu", no_args_is_help=True, cls=RunByDefault
)
app.add_typer(evaluate_app, name="evaluate")
evaluate_app.command("contest")(contest)


@evaluate_app.command("run")
def run(
    model: Annotated[str, typer.Argument(help="A folder, a .gguf file, or the URL of a server.", show_default=False)],
    tasks: Annotated[
        str,
        typer.Option(
            help="Comma-separated: ceval, mmlu, cmmlu, bbh, gsm8k, math500, humaneval, mbpp, ifeval, or a task of "
            "lm_eval over their data, such as mmlu_anatomy or bbh_zeroshot.",
            show_default=False,
        ),
    ],
    data: Annotated[Path, typer.Option(help="The folder of the tasks' files.", envvar=EVALUATION, show_default=False)],
    limit: Annotated[int | None, typer.Option(help="Items of each subset (default: all).", show_default=False)] = None,
    shots: Annotated[int | None, typer.Option(help="Examples in the prompt.", show_default=False)] = None,
    max_new_tokens: Annotated[int | None, typer.Option(help="Longest answer in tokens.", show_default=False)] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Ask in the form of the model's chat template.")] = False,
    folder: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder of the results (default: exam-MODEL).", show_default=False),
    ] = None,
    backend: Annotated[str | None, typer.Option(help="The engine to use.", show_default=False)] = None,
    batch_size: Annotated[int | None, typer.Option(help="Requests at a time.", show_default=False)] = None,
    device: Annotated[str | None, typer.Option(help="Such as cpu or cuda:1.", show_default=False)] = None,
    as_json: JsonOption = False,
) -> None:
    """Examine a model on standard tasks; resumes where it was stopped.

    Example: armillary evaluate ./model --tasks gsm8k,cmmlu --data evaluation --limit 100
    """
    os.environ.setdefault("TQDM_DISABLE", "1")  # read when tqdm is imported; progress is shown here
    from armillary.evaluate.tasks import ExamOptions, hold_examination
    from armillary.generate import BackendOptions, open_backend

    reporter = Reporter()
    options = ExamOptions(
        limit=limit,
        shots=shots,
        max_new_tokens=max_new_tokens,
        chat=chat,
        progress=lambda done, total: reporter("examine", done, total, f"{done} of {total} answers"),
    )
    place = folder or Path(f"exam-{Path(model.rstrip('/')).stem}")
    try:
        examination = hold_examination(
            lambda: open_backend(model, BackendOptions(batch_size=batch_size, device=device), backend),
            [task for name in tasks.split(",") if (task := name.strip())],
            data,
            place,
            options,
        )
    finally:
        reporter.close()
    if as_json:
        return show_json(examination.to_json())
    show_results(f"{model}", examination)
    out.print(f"items and raw outputs: {escape(str(place))}", highlight=False)


def show_results(title: str, examination: Any) -> None:
    """The table of scores."""
    show_table(
        title,
        ["task", "subset", "metric", "value", "low", "high", "n", "truncated", "disagreement"],
        [
            [r.task, r.subset, r.metric, r.value, r.low, r.high, r.n, r.truncated, r.extraction_disagreement]
            for r in examination.results
        ],
    )
