"""Files of runs and examinations as a console reads them, made without training."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from armillary.evaluate import Examination, Item, Result
from armillary.files import write_json
from armillary.goodput import Event, write_events
from armillary.recipe import RunSpec

BEGIN = 1_800_000_000.0


def metrics(steps: int, seed: int = 0) -> pa.Table:
    """Rows as a run writes them, one for each step."""
    rng = np.random.default_rng(seed)
    step = np.arange(1, steps + 1)
    loss = 3 + 4 * step**-0.3 + 0.05 * rng.standard_normal(steps)
    validation = np.where(step % max(1, steps // 6) == 0, loss + 0.1, np.nan)
    return pa.table(
        {
            "step": step,
            "tokens": step * 128,
            "lr": np.linspace(1e-3, 1e-4, steps),
            "loss": loss,
            "grad_norm": np.abs(rng.standard_normal(steps)),
            "validation/a/loss": pa.array(validation, from_pandas=True),
        }
    )


def events(run: str, steps: int, rank: int = 0, every: int = 25) -> list[Event]:
    """An attempt that takes a tenth of a second for a step, with a fault and a second attempt where there are ranks."""
    found = [Event(time_s=BEGIN, run=run, kind="start", step=0, rank=rank, data={"ranks": 2})]
    at = BEGIN + 2
    for step in range(every, steps + 1, every):
        took = 0.1 * every * (1 + rank * (step == 2 * every))
        at += took
        memory = {"memory_gib": 1.5 + rank}
        found.append(Event(time_s=at, run=run, kind="progress", step=step, rank=rank, duration_s=took, data=memory))
        if step == 3 * every and rank == 0:
            found.append(Event(time_s=at, run=run, kind="fault", step=step, data={"problem": "rank 1 was killed"}))
            found.append(Event(time_s=at + 3, run=run, kind="detected", step=step, data={"culprit": 1}))
            found.append(Event(time_s=at + 4, run=run, kind="restart", step=step, data={"attempt": 2}))
            at += 4
    found.append(Event(time_s=at + 1, run=run, kind="end", step=steps, rank=rank))
    return found


def write_run(folder: Path, spec: RunSpec, steps: int = 200, ranks: int = 1) -> None:
    """The files of a run's folder that the console reads."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "spec.json", spec.model_dump(mode="json"))
    pq.write_table(metrics(steps, spec.seed), folder / "metrics.parquet")
    for rank in range(ranks):
        name = "events.jsonl" if rank == 0 else f"events-{rank:05}.jsonl"
        write_events(folder / name, events(spec.id, steps, rank))


def examination(name: str, right: int, run: str | None = None) -> Examination:
    """A model that answers the first ``right`` of 30 items."""
    items = tuple(
        Item(
            f"{n:016x}", "algebra" if n % 2 else "words", f"{n:016x}", "s", str(n), (f"it is {n}",),
            str(n if n < right else "x"), None, {"exact": float(n < right)}, False,
            {"share": 0.9} if n == 3 else {},
        )
        for n in range(30)
    )  # fmt: skip
    result = Result("sums", "sums", "exact", right / 30, 0.1, 0.9, 30, 0.0, None, "s")
    return Examination((result,), {"sums": items}, {"model": name, **({"run": run} if run else {})}, {}, {})


def links(html: str) -> list[str]:
    """Addresses of this host that a page leads to."""
    found = re.findall(r'href="(/[^"#]*)"', html)
    return [link.replace("&amp;", "&") for link in found if not link.startswith(("/static", "/set"))]
