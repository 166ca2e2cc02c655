"""The commands ``evaluate …``, which run, rescore and compare evaluations (examinations, in the code).

``evaluate MODEL …`` is short for ``evaluate run MODEL …``.
"""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from typer.core import TyperGroup

from armillary.cli.app import JsonOption, app
from armillary.cli.backends import Engine, opens_models
from armillary.cli.show.examinations import show_clean, show_results
from armillary.cli.show.screen import Reporter, out, show_json, show_table
from armillary.cli.values import probability
from armillary.cli.verbs.contest import contest
from armillary.cli.verbs.judge import judge
from armillary.cli.verbs.plan_comparison import plan
from armillary.cli.workspaces import DatabaseOption
from armillary.recipe import counted

EVALUATION = "ARMILLARY_EVALUATION"
SHOWN_FLIPS = 20


class RunByDefault(TyperGroup):
    """Treats a first word that is not a command as the model to evaluate."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Insert the command ``run`` before a model."""
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = ["run", *args]
        return super().parse_args(ctx, args)


evaluate_app = typer.Typer(
    help="Evaluate models: armillary evaluate MODEL --tasks gsm8k,cmmlu", no_args_is_help=True, cls=RunByDefault
)
app.add_typer(evaluate_app, name="evaluate")
evaluate_app.command("contest")(contest)
evaluate_app.command("judge")(judge)
evaluate_app.command("plan")(plan)


@evaluate_app.command("run")
@opens_models
def run(
    model: Annotated[str, typer.Argument(help="A folder, a .gguf file, or the URL of a server.", show_default=False)],
    tasks: Annotated[
        str,
        typer.Option(
            help="Comma-separated: ceval, mmlu, cmmlu, bbh, gsm8k, math500, humaneval, mbpp, ifeval, or an lm_eval "
            "task on the same data, such as mmlu_anatomy or bbh_zeroshot.",
            show_default=False,
        ),
    ],
    data: Annotated[
        Path, typer.Option(help="Folder with the data files of the tasks.", envvar=EVALUATION, show_default=False)
    ],
    limit: Annotated[
        int | None,
        typer.Option(min=1, help="Evaluate at most this many items per subset (default: all).", show_default=False),
    ] = None,
    shots: Annotated[
        int | None,
        typer.Option(
            min=0, help="Number of solved examples in the prompt (default: that of the task).", show_default=False
        ),
    ] = None,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Longest answer in tokens (default: that of the task).", show_default=False),
    ] = None,
    variants: Annotated[
        int, typer.Option(min=1, help="Number of prompt formats to try; the interval includes the spread between them.")
    ] = 1,
    chat: Annotated[bool, typer.Option("--chat", help="Format the prompts with the model's chat template.")] = False,
    trained_on: Annotated[
        list[Path] | None,
        typer.Option(
            help="Training text to check for contamination with the items: a corpus, a file or a folder; repeatable.",
            show_default=False,
        ),
    ] = None,
    out_folder: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder of the results (default: exam-MODEL).", show_default=False),
    ] = None,
    store: Annotated[
        Path | None,
        typer.Option(help="Also record the results in the store in this folder.", show_default=False),
    ] = None,
    database: DatabaseOption = None,
    *,
    engine: Engine,
    as_json: JsonOption = False,
) -> None:
    """Evaluate a model on standard tasks; the same command resumes after an interruption.

    Example: armillary evaluate ./model --tasks gsm8k,cmmlu --data evaluation --limit 100
    """
    os.environ.setdefault("TQDM_DISABLE", "1")  # read when tqdm is imported; this verb shows its own progress
    from armillary.evaluate.tasks import ExamOptions, contamination_in, default_folder, hold_examination, lineage_of
    from armillary.generate import open_backend

    reporter = Reporter()
    options = ExamOptions(
        limit=limit,
        shots=shots,
        max_new_tokens=max_new_tokens,
        variants=variants,
        chat=chat,
        contamination=contamination_in(trained_on) if trained_on else None,
        lineage=lineage_of(model),
        note=reporter.say,
        progress=lambda done, total: reporter("examine", done, total, f"{done} of {counted(total, 'answer')}"),
    )
    results_folder = out_folder or default_folder(model)
    if store is not None:
        from armillary.study.examined import open_store, record_examination

        open_store(store, database).close()  # a wrong store is reported before the model runs
    try:
        examination = hold_examination(
            lambda: open_backend(model, engine.options, engine.name),
            [task for name in tasks.split(",") if (task := name.strip())],
            data,
            results_folder,
            options,
        )
    finally:
        reporter.close()
    recorded = None
    if store is not None:
        opened = open_store(store, database)
        recorded = record_examination(opened, results_folder)["examination"]
        opened.close()
    if as_json:
        return show_json(examination.to_json() | ({} if recorded is None else {"examination": recorded}))
    show_results(f"{model}", examination)
    if recorded is not None:
        out.print(f"examination {recorded} in {escape(str(store))}", highlight=False)
    if trained_on:
        show_clean(examination)
    out.print(f"items and raw outputs: {escape(str(results_folder))}", highlight=False)


@evaluate_app.command("audit")
def audit(
    folder: Annotated[Path, typer.Argument(help="Results folder of an evaluation.", show_default=False)],
    as_json: JsonOption = False,
) -> None:
    """List the items from whose output two independent extractors read different answers.

    Example: armillary evaluate audit exam-model
    """
    from armillary.evaluate import read_examination
    from armillary.evaluate.tasks import audit as audited

    examination = read_examination(folder)
    found = audited(examination)
    if as_json:
        return show_json([asdict(one) for one in found])
    show_table(
        f"{folder}: {counted(len(found), 'disagreement')}",
        ["task", "item", "answer", "second", "gold", "end of the output"],
        [[d.task, d.id, d.answer, d.second_answer, str(d.gold)[-40:], d.output[-120:]] for d in found],
    )


@evaluate_app.command("rescore")
def rescore(
    folder: Annotated[Path, typer.Argument(help="Results folder of an evaluation.", show_default=False)],
    extractor: Annotated[
        str, typer.Option(help="'audit' for the second extractor of each task, or a regular expression.")
    ] = "audit",
    out_folder: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder of the new results (default: not written).", show_default=False),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Read the answers from the stored outputs with another extractor, without running the model.

    Example: armillary evaluate rescore exam-model --extractor 'answer is (-?[0-9]+)'
    """
    from armillary.evaluate import read_examination
    from armillary.evaluate.tasks import rescore as rescored
    from armillary.evaluate.tasks import write_rescored

    examination = rescored(read_examination(folder), extractor)
    if out_folder is not None:
        write_rescored(out_folder, examination)
    if as_json:
        return show_json(examination.to_json())
    show_results(f"{folder} with the extractor {extractor}", examination)


@evaluate_app.command("compare")
def compare(
    first: Annotated[
        str,
        typer.Argument(help="Folder of an evaluation, or several, comma-separated: one per seed.", show_default=False),
    ],
    second: Annotated[
        str, typer.Argument(help="Folder of another evaluation, or several, comma-separated.", show_default=False)
    ],
    margin: Annotated[
        float | None,
        typer.Option(
            callback=probability,
            help="Equivalence margin: the largest difference that does not matter, such as 0.01.",
            show_default=False,
        ),
    ] = None,
    any_settings: Annotated[
        bool, typer.Option("--any-settings", help="Compare even if prompts, examples or extractors differ.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Compare two evaluations item by item: difference, interval, p-value, and the items that flipped.

    With several evaluations on a side (models that differ only in their seed), the interval covers seeds and items.

    Example: armillary evaluate compare exam-base exam-tuned --margin 0.01
    """
    from armillary.evaluate import compare_seeds, read_examinations

    found = compare_seeds(read_examinations(first), read_examinations(second), margin, any_settings)
    if as_json:
        return show_json([one.to_json() for one in found])
    show_table(
        f"{second} minus {first}, paired by item",
        ["task", "metric", "first", "second", "difference", "low", "high", "p", "p (Holm)", "n", "up", "down"]
        + (["equivalent"] if margin is not None else []),
        [
            [
                *(one.task, one.metric, one.first, one.second),
                *(one.paired.difference.value, one.paired.difference.low, one.paired.difference.high),
                *(one.paired.p_value, one.p_adjusted, one.paired.items, one.paired.better, one.paired.worse),
                *(["yes" if one.paired.equivalent else "no"] if margin is not None else []),
            ]
            for one in found
        ],
    )
    for one in found:
        if one.flips:
            rows = [[flip.id, flip.first, flip.second] for flip in one.flips[:SHOWN_FLIPS]]
            more = f", {SHOWN_FLIPS} of {len(one.flips)}" if len(one.flips) > SHOWN_FLIPS else ""
            show_table(f"{one.task} {one.metric}: items that flipped{more}", ["item", "first", "second"], rows)
        if one.seeds is not None:
            out.print(
                f"{one.task} {one.metric}: {one.seeds.first} and {one.seeds.second} seeds; a seed's score has a "
                f"standard deviation of {one.seeds.std:.4f} beyond flips of single items; seeds account for "
                f"{one.seeds.share:.0%} of the variance of the difference",
                highlight=False,
            )
        if one.left_out:
            out.print(
                f"{one.task}: left out {counted(one.left_out, 'item')} that only one of the two answered",
                highlight=False,
            )
