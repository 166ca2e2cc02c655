"""The verb ``post verify``: judges replies with programs, and measures the error rates of these programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from armillary.cli.app import JsonOption
from armillary.cli.show.screen import Reporter, out, show_json, show_table
from armillary.recipe import UsageError


def verify(
    data: Annotated[
        Path | None,
        typer.Argument(help="Items, conversations or pairs with checks, in any format.", show_default=False),
    ] = None,
    folder: Annotated[
        Path | None, typer.Option("--out", "-o", help="New folder of the stage.", show_default=False)
    ] = None,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="Measure the verifiers' errors on labelled replies instead.")
    ] = False,
    n: Annotated[int, typer.Option("--n", min=1, help="With --calibrate: known answers per family.")] = 40,
    seed: Annotated[int, typer.Option(min=0, help="With --calibrate: seed of the known answers.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Keep the items with a right reply; wrong and unreadable replies are counted separately. Resumes.

    Example: armillary post verify questions/items.jsonl --out verified
    """
    if calibrate:
        if data is not None or folder is not None:
            raise UsageError("--calibrate takes no data and no --out")
        return _calibrate(n, seed, as_json)
    if data is None or folder is None:
        raise UsageError("give a file of items and --out, or --calibrate")
    from armillary.post.verify import verify_file

    reporter = Reporter()
    try:
        record = verify_file(data, folder, lambda done, total, note: reporter("verify", done, total, note))
    finally:
        reporter.close()
    if as_json:
        return show_json(record)
    counts = record["counts"]
    out.print(f"{escape(str(folder / 'items.jsonl'))}: {counts['kept']:,} items of {counts['decided']:,}")
    for reason, count in counts["dropped"].items():
        out.print(f"  dropped, {reason}: {count:,}")
    if share := counts["verified"]:
        out.print(f"  right: {share['share']:.1%} ({share['low']:.1%} to {share['high']:.1%}) of {share['of']:,}")


def _calibrate(n: int, seed: int, as_json: bool) -> None:
    from armillary.post.verify import calibrate

    reporter = Reporter()
    try:
        found = calibrate(n, seed, lambda done, total, note: reporter("calibrate", done, total, note))
    finally:
        reporter.close()
    if as_json:
        return show_json(found.to_json())

    def cell(rate: Any, count: int, of: int) -> str:
        return "" if rate is None else f"{count} of {of:,}: {rate.value:.2%} ({rate.low:.2%} to {rate.high:.2%})"

    show_table(
        "error rates, with Wilson's 95 % intervals",
        ["kind", "right replies rejected", "wrong replies accepted"],
        [
            [
                rates.kind,
                cell(rates.reject_rate, rates.false_rejects, rates.right),
                cell(rates.accept_rate, rates.false_accepts, rates.wrong),
            ]
            for rates in found.kinds
        ],
    )
    for kind in found.missing:
        out.print(f"{kind}: not measured, because reasoning-gym is not installed: pip install 'armillary[teach]'")
    for case in found.errors:
        judged = "rejected" if case.right else "accepted"
        out.print(
            f"{judged}: {case.kind}, {case.mutation}, answer {escape(repr(case.task.answer))}: "
            f"{escape(repr(case.reply))}"
        )
