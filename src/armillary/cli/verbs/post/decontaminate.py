"""The verbs that search for evaluation items: in training items, and in the training split of their own set."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from armillary.cli.app import JsonOption
from armillary.cli.show.screen import Reporter, out, show_json, show_table
from armillary.cli.values import nucleus

NearOption = Annotated[float, typer.Option(callback=nucleus, help="Smallest Jaccard similarity of a near duplicate.")]


def decontaminate(
    items: Annotated[
        Path, typer.Argument(help="Items, conversations or preference pairs, in any format.", show_default=False)
    ],
    against: Annotated[
        list[Path],
        typer.Option(help="Evaluation files, or folders of them; repeatable.", show_default=False),
    ],
    folder: Annotated[Path, typer.Option("--out", "-o", help="Folder of the stage.", show_default=False)],
    near: NearOption = 0.5,
    as_json: JsonOption = False,
) -> None:
    """Remove items that repeat evaluation items; each is named with the item it matched.

    Training files in a folder of evaluation sets (``train`` in their names) are skipped.

    Example: armillary post decontaminate items.jsonl --against evaluation/gsm8k --against evaluation/cmmlu --out clean
    """
    from armillary.post import DecontaminateOptions
    from armillary.post import decontaminate as decontaminated

    reporter = Reporter()
    options = DecontaminateOptions(
        near,
        progress=lambda done, total: reporter("decontaminate", done, total, f"{done >> 20} of {total >> 20} MiB"),
        note=reporter.say,
    )
    try:
        record = decontaminated(items, against, folder, options)
    finally:
        reporter.close()
    if as_json:
        return show_json(record)
    counts = record["counts"]
    show_table(
        f"{folder}: {counts['kept']} of {counts['decided']} items kept",
        ["removed by", "items"],
        [[by, number] for by, number in counts["dropped"].items()],
    )
    out.print(f"matches of the removed items: {escape(str(folder / 'dropped.jsonl'))}", highlight=False)


def leaks(
    path: Annotated[Path, typer.Argument(help="Folder of evaluation sets, or one file.", show_default=False)],
    near: NearOption = 0.5,
    as_json: JsonOption = False,
) -> None:
    """Count the rows of test splits that repeat rows of the training split of their own set.

    Example: armillary post leaks evaluation/ched
    """
    from armillary.post import PASSES, find_leaks

    reporter = Reporter()
    try:
        found = find_leaks(path, reporter.say, near)
    finally:
        reporter.close()
    if as_json:
        return show_json([one.to_json() for one in found])
    show_table(
        f"{path}: rows that repeat a row of an earlier split",
        ["set", "split", "repeats", "rows", *PASSES],
        [[one.data, one.split, one.earlier, one.rows, *(one.counts.get(by, 0) for by in PASSES)] for one in found],
    )
