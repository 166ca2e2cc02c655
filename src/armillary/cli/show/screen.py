"""Progress, tables and JSON on the terminal, for all verbs.

Results go to standard output and progress to standard error. With ``--json``, standard output is a single JSON value.
"""

from __future__ import annotations

import json
import math
import sys
import time
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from armillary.cli.guard import masked

# Width if the output is not a terminal: a table in a file must not be cut.
_WIDE = 200

# No emoji codes: "recipe.yaml:100: " is a line number. Foreign text goes through `escape`, since a path may look like
# markup.
out = Console(soft_wrap=True, emoji=False, width=None if sys.stdout.isatty() else _WIDE)
err = Console(stderr=True, soft_wrap=True, emoji=False)
_PLAIN_EVERY_S = 15.0


class Reporter:
    """Shows progress: a bar with the time left on a terminal, else an occasional line."""

    def __init__(self) -> None:
        columns = (
            TextColumn("{task.description:<18}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%  {task.fields[note]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=False),
        )
        self.bars = Progress(*columns, console=err)
        self.tasks: dict[str, Any] = {}
        self.begun: dict[str, tuple[float, float]] = {}  # time and work done at the first report of a stage
        self.printed: dict[str, float] = {}
        self.ended: set[str] = set()

    def __call__(self, stage: str, done: float, total: float, note: str) -> None:
        if stage in self.ended and done < total:  # another stage of that name, such as the same model's next method
            self.ended.discard(stage)
            self.begun.pop(stage, None)
            self.printed.pop(stage, None)
            if stage in self.tasks:
                self.bars.reset(self.tasks[stage])
        if done >= total:
            self.ended.add(stage)
        if stage == "plan":
            (self.bars.console if err.is_terminal else err).print(f"[dim]plan[/dim] {note}")
        elif err.is_terminal:
            if stage not in self.tasks:
                self.bars.start()
                self.tasks[stage] = self.bars.add_task(stage, total=total, note=note)
            self.bars.update(self.tasks[stage], completed=done, total=total, note=note)
        else:
            now = time.monotonic()
            begun, before = self.begun.setdefault(stage, (now, done))
            if now - self.printed.get(stage, 0.0) >= _PLAIN_EVERY_S or done >= total:
                self.printed[stage] = now if done < total else float("inf")
                state = f"{done / max(total, 1e-9):.0%} {note}".rstrip()
                left = (now - begun) * (total - done) / (done - before) if before < done < total else None
                ends = "" if left is None else f", about {left:.0f} s left"
                err.print(f"{stage}: {state}, {now - begun:.0f} s{ends}")

    def say(self, text: str) -> None:
        """Print a line above the progress bar."""
        (self.bars.console if err.is_terminal else err).print(
            f"[yellow]note[/yellow] {escape(masked(text))}", highlight=False
        )

    def close(self) -> None:
        """Restore the terminal."""
        self.bars.stop()


def show_json(value: Any) -> None:
    """Print one JSON value on standard output; infinity and NaN become null."""
    plain = value.model_dump(mode="json") if hasattr(value, "model_dump") else value
    print(masked(json.dumps(finite(plain), ensure_ascii=False, allow_nan=False)))


def finite(value: Any) -> Any:
    """``value`` with null for numbers that JSON cannot represent."""
    if isinstance(value, dict):
        return {key: finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def shown(value: Any) -> str:
    """An entry of a table: four decimals, or four significant digits for very small or large numbers."""
    if not isinstance(value, float):
        return "" if value is None else escape(masked(str(value)))
    return f"{value:.4f}" if value == 0 or 1e-2 <= abs(value) < 1e5 else f"{value:.4g}"


def show_table(title: str, columns: list[str], rows: list[list[Any]]) -> None:
    """Print a table with right-aligned numbers."""
    table = Table(title=title, title_justify="left", title_style="bold")
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*map(shown, row))
    out.print(table)
