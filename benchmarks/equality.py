"""Differences between training under each layout and training in one process: the table of equality.

For each dimension and for combinations of them, a small model is trained for 20 steps in fp32, by one process and by
ranks that are processes of this machine (gloo). The table has the largest differences of the first step's loss (nats),
of its gradients (relative to the largest gradient of the same parameter), and of the loss over all 20 steps. Model,
layouts and comparison are those of tests/parallel/runs.py.

Layouts with "bf16" train in bf16 and are compared with one process in bf16, which keeps the residual stream in fp32;
ranks with sharded parameters keep it in bf16. "one process, bf16 against fp32" is the difference made by bf16 itself.

    python benchmarks/equality.py [--only dp2 "pp2 x tp2"] [--json FILE]
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from common import markdown, write_json

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.parallel.runs import ALONE, EIGHT, TOGETHER, Course, alone, differences, specification, spread

from armillary.recipe import RunSpec

COLUMNS = ("loss", "gradients", "curve")
HALF = {f"{name}, bf16": (ALONE | TOGETHER)[name] for name in ("dp2", "tp2", "dp2 x tp2", "pp2 x dp2")}
LAYOUTS = ALONE | TOGETHER | EIGHT | HALF
ITSELF = "one process, bf16 against fp32"


def run_of(name: str) -> RunSpec:
    """What is trained under the layout ``name``."""
    return specification(precision="bf16" if name in HALF else "fp32")


def rank_main(rank: int, ranks: int, store: str, names: list[str], results: Any) -> None:
    """One rank: the run under every layout of ``names``, all of which have as many ranks."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(store, ranks), rank=rank, world_size=ranks)
    for name in names:
        results.put((name, spread(run_of(name), LAYOUTS[name])))
    dist.barrier()
    dist.destroy_process_group()


def measure(names: list[str], ranks: int) -> dict[str, dict[str, float]]:
    """The differences of each layout of ``names``, all of ``ranks`` ranks."""
    context = multiprocessing.get_context("spawn")
    found: dict[str, list[Course]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as folder, context.Manager() as manager:
        results = manager.Queue()
        arguments = (ranks, str(Path(folder) / "store"), names, results)
        processes = [context.Process(target=rank_main, args=(rank, *arguments)) for rank in range(ranks)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        if any(process.exitcode for process in processes):
            sys.exit(f"a rank failed: exit codes {[process.exitcode for process in processes]}")
        while not results.empty():
            name, course = results.get()
            found[name].append(course)
    return {name: differences(alone(run_of(name)), courses) for name, courses in found.items()}


def show(columns: list[str], rows: dict[str, dict[str, float]]) -> None:
    """Print a table of the differences."""
    lines = [[name, str(row["ranks"]), *(f"{row[key]:.1e}" for key in COLUMNS)] for name, row in rows.items()]
    print(markdown(columns, lines), end="\n\n", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=[*LAYOUTS, ITSELF], help="layouts; all if left out")
    parser.add_argument("--json", type=Path, help="file for the numbers")
    arguments = parser.parse_args()
    layouts = {name: layout for name, layout in LAYOUTS.items() if name in (arguments.only or [name])}
    rows: dict[str, dict[str, float]] = {}
    columns = ["layout", "ranks", "loss of the first step", "its gradients", "loss over 20 steps"]
    for ranks in sorted({layout.ranks for layout in layouts.values()}):
        found = measure([name for name, layout in layouts.items() if layout.ranks == ranks], ranks)
        rows |= {name: {"ranks": ranks, **row} for name, row in found.items()}
        show(columns, {name: rows[name] for name in found})
    if ITSELF in (arguments.only or [ITSELF]):
        half = alone(specification(precision="bf16"))
        rows[ITSELF] = {"ranks": 1, **differences(alone(specification()), [half])}
        show(columns, {ITSELF: rows[ITSELF]})
    write_json(arguments.json, "equality", torch=torch.__version__, layouts=rows)


if __name__ == "__main__":
    main()
