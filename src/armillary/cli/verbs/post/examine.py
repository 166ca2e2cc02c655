"""The verb ``post examine``: a model answers items, and verifiers judge the answers."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer

from armillary.cli.app import JsonOption
from armillary.cli.backends import Engine, ModelArgument, opens_models
from armillary.cli.show.screen import Reporter, show_json, show_table
from armillary.cli.verbs.post.training import TemplateOption


@opens_models
def examine(
    model: ModelArgument,
    items: Annotated[
        list[Path], typer.Option(help="Items with a check; each file is a task. Repeatable.", show_default=False)
    ],
    folder: Annotated[Path, typer.Option("--out", "-o", help="Folder of the examination.", show_default=False)],
    texts: Annotated[
        list[Path] | None,
        typer.Option(help="Plain texts (JSONL with text) to measure in bits per byte. Repeatable.", show_default=False),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="The first items of each file (default: all).", show_default=False)
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer in tokens.")] = 256,
    template: TemplateOption = None,
    *,
    engine: Engine,
    as_json: JsonOption = False,
) -> None:
    """Examine a model on items, into a folder for `evaluate compare`. A second call requests only missing answers.

    Example: armillary post examine ./chat/model --items held-out/items.jsonl --out exam
    """
    from armillary.generate import Sampling, open_backend
    from armillary.post.examine import ExamineOptions, examine_items, in_template, named_sets

    sets = named_sets(items)
    options = ExamineOptions(Sampling(max_new_tokens), limit=limit, texts=named_sets(texts or []))
    if template is not None:
        options = in_template(options, Path(model), template)
    reporter = Reporter()
    try:
        with closing(open_backend(model, engine.options, engine.name)) as backend:
            found = examine_items(
                backend, sets, folder, options, lambda done, total: reporter("examine", done, total, "")
            )
    finally:
        reporter.close()
    if as_json:
        return show_json(found.to_json())
    show_table(
        f"{folder}: {model}",
        ["task", "subset", "metric", "value", "low", "high", "items"],
        [[r.task, r.subset, r.metric, f"{r.value:.3f}", f"{r.low:.3f}", f"{r.high:.3f}", r.n] for r in found.results],
    )
