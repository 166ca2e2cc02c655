"""Programs per second in the sandbox, against the same program in a bare interpreter process.

    python benchmarks/sandbox.py --programs 40

Prints the median seconds of one short program, its ratio to a bare subprocess, and programs per second on several
threads. The two take turns, so that a busy machine slows both.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from common import markdown, write_json

from armillary.evaluate.sandbox import Limits, run_python, sandbox_strength

PROGRAM = "print(sum(range(1000)))"
EXPECTED = "499500"


def main() -> None:
    """Measure both and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--programs", type=int, default=40)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    ways: dict[str, Callable[[], str]] = {"bare subprocess": _bare, "sandbox": _boxed}
    alone: dict[str, list[float]] = {name: [] for name in ways}
    for way in ways.values():
        way()  # what is loaded once is not measured
    for _ in range(given.programs):
        for name, way in ways.items():
            alone[name].append(_seconds(way))
    rates = {name: given.programs / _together(way, given.programs, given.threads) for name, way in ways.items()}
    medians = {name: statistics.median(seconds) for name, seconds in alone.items()}
    bare = medians["bare subprocess"]
    rows = [
        [
            name,
            f"{1000 * medians[name]:.0f}",
            f"{medians[name] / bare:.1f}",
            f"{1 / medians[name]:.1f}",
            f"{rates[name]:.1f}",
        ]
        for name in ways
    ]
    columns = ["", "median ms", "ratio", "programs/s, one at a time", f"programs/s, {given.threads} threads"]
    print(markdown(columns, rows))
    print(f"active layers: {', '.join(sorted(sandbox_strength().active))}")
    write_json(given.json, "sandbox", seconds=medians, programs_per_s=rates, ratio=medians["sandbox"] / bare)


def _bare() -> str:
    ended = subprocess.run([sys.executable, "-I", "-c", PROGRAM], capture_output=True, text=True, check=True)
    return ended.stdout


def _boxed() -> str:
    return run_python(PROGRAM, Limits(wall_s=30)).stdout


def _seconds(way: Callable[[], str]) -> float:
    begun = time.monotonic()
    if way().strip() != EXPECTED:
        raise SystemExit(f"{way.__name__}: the program did not print {EXPECTED}")
    return time.monotonic() - begun


def _together(way: Callable[[], str], programs: int, threads: int) -> float:
    begun = time.monotonic()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda _: _seconds(way), range(programs)))
    return time.monotonic() - begun


if __name__ == "__main__":
    main()
