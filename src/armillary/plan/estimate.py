"""Predictions for a table of layouts, as columns beside the table's own."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from armillary.files import write_file
from armillary.plan.calibrate import predict
from armillary.plan.constants import constants
from armillary.plan.memory import peak_memory
from armillary.plan.published import Row, read_rows, values_of
from armillary.plan.uncertainty import kind_of

COLUMNS = (
    "pred_step_time_s", "pred_tflops_per_accel", "pred_hfu_tflops_per_accel", "pred_mfu", "pred_tokens_per_s_per_accel",
    "pred_low", "pred_high", "pred_peak_mem_gb", "pred_mem_low", "pred_mem_high", "pred_fits", "pred_reason",
    "pred_assumed",
)  # fmt: skip


def estimate_row(row: Row) -> dict[str, Any]:
    """The predicted columns of a row; only ``pred_reason`` if it cannot be predicted."""
    if row.job is None:
        return dict.fromkeys(COLUMNS, "") | {"pred_reason": row.reason}
    base = constants()
    values = values_of(row, predict(row.job, base).total)
    memory = peak_memory(row.job, base).total
    low, high = base.interval(kind_of(row.job, row.assumed)).around(values["tokens_per_s_per_accel"])
    numbers = {f"pred_{name}": value for name, value in values.items()}
    numbers |= {"pred_low": low, "pred_high": high, "pred_peak_mem_gb": memory}
    numbers["pred_mem_low"], numbers["pred_mem_high"] = base.interval("memory").around(memory)
    return {
        **{name: f"{value:.6g}" for name, value in numbers.items()},
        "pred_fits": str(memory <= row.job.accelerator.memory_gb).lower(),
        "pred_reason": "",
        "pred_assumed": " ".join(name.replace(" ", "_") for name in row.assumed),
    }


def estimate(layouts: Path, out: Path) -> dict[str, int]:
    """Write the table ``layouts`` with the predicted columns to ``out``; the number of rows with and without.

    Raises:
        UsageError: the table cannot be read.
    """
    rows = read_rows(layouts)
    text = io.StringIO()
    own = [name for name in (rows[0].fields if rows else {}) if name not in COLUMNS]
    writer = csv.DictWriter(text, [*own, *COLUMNS], extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({**row.fields, **estimate_row(row)})
    write_file(out, text.getvalue().encode())
    predicted = sum(row.job is not None for row in rows)
    return {"rows": len(rows), "predicted": predicted, "not_predictable": len(rows) - predicted}
