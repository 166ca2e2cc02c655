"""Speed of the console and `armillary runs` with 100,000 runs, and of a comparison of 100 runs with 10,000 steps.

Builds a store through its own schema (rows as ``Store.add`` and ``Store.mark_done`` write them, with a journal) and
files of metrics, then requests the pages of a console over it, as a browser would, and runs ``armillary runs`` in a
separate process. Prints a table, and JSON with ``--json FILE``. Times are those of the server, from request to complete
answer; the first page is the first request to a new process.

    python benchmarks/console.py [--runs 100000] [--steps 10000] [--folder FOLDER] [--json FILE]
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import sqlalchemy as sa
from common import markdown, shape, write_json

from armillary.recipe import MixturePhase, OptimizerSpec, RunSpec, Schedule
from armillary.store import Store, facts_of
from armillary.store.chain import append
from armillary.store.schema import run_facts, runs, study_runs

STUDIES = 40
COMPARED = 100
_BATCH = 5000


def specification(number: int, rng: np.random.Generator) -> RunSpec:
    """One of the runs: six shapes, mixtures of five domains."""
    weights = rng.dirichlet(np.ones(5))
    mixture = dict(zip(("code", "web", "books", "papers", "talk"), (weights / weights.sum()).tolist(), strict=True))
    return RunSpec(
        corpus="c" * 16,
        model=shape(2 + number % 3, 64 * (1 + number % 2), 192, 4096),
        context_length=128,
        batch_sequences=16,
        steps=1000,
        mixture=(MixturePhase(start_step=0, weights=mixture),),
        schedule=Schedule(warmup_steps=100, decay_steps=200),
        optimizer=OptimizerSpec(lr=1e-3, kind=("adamw", "muon")[number % 2]),
        seed=number,
    )


def fill(store: Store, count: int) -> list[str]:
    """Add ``count`` runs, nearly all of them done; returns the ids of the last ``COMPARED``."""
    rng, last, now = np.random.default_rng(0), [], time.time() - count
    for first in range(0, count, _BATCH):
        specs = [specification(number, rng) for number in range(first, min(first + _BATCH, count))]
        rows: dict[str, list[dict[str, Any]]] = {"runs": [], "facts": [], "pairs": []}
        for number, spec in enumerate(specs, start=first):
            done = number % 50 != 49
            loss = {domain: float(3 + rng.random()) for domain in spec.mixture[0].weights}
            result = {
                "run": spec.id, "loss": loss, "bits_per_byte": loss, "train_loss": 3.0, "tokens": spec.tokens,
                "flops": spec.flops, "epochs": dict.fromkeys(loss, 1.0), "wall_s": 60.0, "measured": {}, "skipped": [],
            }  # fmt: skip
            rows["runs"].append(
                {
                    "id": spec.id, "spec": spec.model_dump(mode="json"), "status": "done" if done else "failed",
                    "created_at": now + number, "started_at": now + number, "finished_at": now + number + 60.0,
                    "attempts": 1, "error": None if done else f"run {spec.id}: the disk is full",
                    "result": result if done else sa.null(), "folder": str(store.folder), "owner": "0" * 16,
                }
            )  # fmt: skip
            rows["facts"].append({"run": spec.id, **facts_of(spec)})
            rows["pairs"].append({"study": f"study-{number % STUDIES:02}", "run": spec.id})
        with store.database.writing() as db:
            done_rows = [row for row in rows["runs"] if row["status"] == "done"]
            failed = [{**row, "result": None} for row in rows["runs"] if row["status"] != "done"]
            db.execute(sa.insert(runs), done_rows)
            if failed:
                db.execute(sa.insert(runs), failed)
            db.execute(sa.insert(run_facts), rows["facts"])
            db.execute(sa.insert(study_runs), rows["pairs"])
        last = [spec.id for spec in specs][-COMPARED:]
    with store.database.writing() as db:
        append(db, "note", "", time.time(), benchmark="console")
    return last


def write_metrics(folder: Path, steps: int, seed: int) -> None:
    """A file of metrics as a run writes it: row groups of 4096 steps."""
    rng, step = np.random.default_rng(seed), np.arange(1, steps + 1)
    columns = {
        "step": step,
        "tokens": step * 2048,
        "lr": np.linspace(1e-3, 1e-4, steps),
        "loss": 3 + 5 * step**-0.3 + 0.1 * rng.standard_normal(steps),
        "grad_norm": np.abs(rng.standard_normal(steps)),
    }
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), folder / "metrics.parquet", row_group_size=4096)


def serve(places: str, addresses: list[str]) -> None:
    """In a subprocess: print seconds and bytes of each address, which is asked for twice, and the memory."""
    from starlette.testclient import TestClient

    from armillary.console import ConsoleOptions, create_app

    app = create_app(ConsoleOptions((places,)))
    app.state.watch.warm()  # as `armillary console` does before it prints its address
    client = TestClient(app, base_url="http://localhost")
    for address in addresses:
        for _ in range(2):
            begin = time.perf_counter()
            answer = client.get(address)
            print(time.perf_counter() - begin, len(answer.content), answer.status_code)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def measure(folder: Path, compared: list[str]) -> tuple[list[dict[str, Any]], float]:
    """Times of the pages, first and again; and the console's largest memory in MiB."""
    chosen = "&".join(f"run=0.{run}" for run in compared)
    page_2 = "/runs?before=" + f"{time.time() - 50_000!r}~ffffffffffffffff"
    asked = {
        "first page": "/studies",
        "runs": "/runs",
        "runs, deep page": page_2,
        "runs of a status": "/runs?status=failed",
        "runs of a study": "/runs?study=study-07",
        "runs of a shape": "/runs?shape=4x128",
        "runs by mixture": "/runs?mixture=code%3E%3D0.6,web%3E%3D0.2",
        "runs by tag": "/runs?tag=muon%20seed-77",
        "goodput": "/goodput",
        f"comparison of {len(compared)} runs": f"/compare?{chosen}&y=loss",
        "the same, gradient norm over tokens": f"/compare?{chosen}&y=grad_norm&x=tokens",
        "predictions": "/predictions",  # last, since the chain of records is then checked in the background
    }
    program = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import console as c; c.serve({str(folder)!r}, {list(asked.values())!r})"  # noqa: E501
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    lines = [line.split() for line in done.stdout.splitlines()]
    rows = []
    for number, (name, address) in enumerate(asked.items()):
        first, again = lines[2 * number], lines[2 * number + 1]
        assert first[2] == again[2] == "200", (address[:80], first)
        rows.append({"page": name, "first_s": float(first[0]), "again_s": float(again[0]), "bytes": int(first[1])})
    return rows, float(lines[-1][0])


def listing(folder: Path) -> tuple[float, float]:
    """Seconds and MiB of ``Store.overview`` as `armillary runs --json` prints it, in a subprocess."""
    program = (
        "import json, resource, sys, time; begin = time.perf_counter()\n"
        "from pathlib import Path\nfrom armillary.store import Store\n"
        f"rows = Store(Path({str(folder)!r})).overview()\n"
        "sys.stdout.write(str(len(json.dumps(rows))) + '\\n')\n"
        "print(time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    seconds, memory = done.stdout.split()[-2:]
    return float(seconds), float(memory)


def main() -> None:
    """Build, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=100_000)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--folder", type=Path, help="where to build; what an earlier call built there is used again")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        begin = time.perf_counter()
        store = Store(folder)
        compared = [row.run for row in store.listed(store.study_runs("compared"))]
        if not compared:
            compared = fill(store, options.runs)
            with store.database.writing() as db:
                db.execute(sa.insert(study_runs), [{"study": "compared", "run": run} for run in compared])
            for seed, run in enumerate(compared):
                write_metrics(store.run_folder(run), options.steps, seed)
        store.close()
        built = time.perf_counter() - begin
        rows, memory = measure(folder, compared)
        seconds, listed = listing(folder)
    print(f"{options.runs:,} runs, built in {built:.0f} s; the console took {memory:.0f} MiB")
    shown = [
        [
            row["page"],
            f"{1000 * row['first_s']:.0f} ms",
            f"{1000 * row['again_s']:.0f} ms",
            f"{row['bytes'] / 1024:.0f} KiB",
        ]
        for row in rows
    ]
    print(markdown(["page", "first time", "again", "size"], shown))
    print(f"overview of all runs (`armillary runs --json`): {seconds:.2f} s, {listed:.0f} MiB")
    write_json(options.json, "console", pages=rows, memory_mib=memory, overview_s=seconds, overview_mib=listed)


if __name__ == "__main__":
    main()
