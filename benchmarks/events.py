"""The cost of an event: the time that a training process spends in one call of ``EventWriter.write``.

The events are ``progress`` events as the trainer writes them, on an idle machine and beside ``--load`` busy processes.
A process that shares its core with others is also interrupted within a call, which shows in the 99th percentile.

    python benchmarks/events.py [--events 20000] [--load 8] [--json events.json]
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import sys
import tempfile
import time
from pathlib import Path

from common import markdown, write_json

from armillary.goodput import EventWriter

ALLOWED_S = 20e-6


def spin() -> None:
    """Use a core until the process is ended."""
    while True:
        pass


def measure(events: int) -> dict[str, float]:
    """Median and 99th percentile in seconds of one event, after a hundred that do not count."""
    took = []
    with tempfile.TemporaryDirectory() as folder, EventWriter(Path(folder) / "events.jsonl", "0" * 16) as writer:
        for number in range(events + 100):
            begin = time.perf_counter()
            writer.write("progress", number, 1.2345678, loss=2.3456789)
            took.append(time.perf_counter() - begin)
    return {"median_s": statistics.median(took[100:]), "p99_s": statistics.quantiles(took[100:], n=100)[98]}


def main() -> int:
    """Measure both; the exit status is 1 if a median is over the allowed cost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=20_000)
    parser.add_argument("--load", type=int, default=8, help="busy processes beside the second measurement (default 8)")
    parser.add_argument("--json", type=Path, help="where to write the numbers")
    options = parser.parse_args()
    found = {"alone": measure(options.events)}
    busy = [multiprocessing.Process(target=spin, daemon=True) for _ in range(options.load)]
    for process in busy:
        process.start()
    try:
        found[f"beside {options.load} busy processes"] = measure(options.events)
    finally:
        for process in busy:
            process.kill()
    rows = [[name, f"{one['median_s'] * 1e6:.1f}", f"{one['p99_s'] * 1e6:.1f}"] for name, one in found.items()]
    print(markdown(["machine", "median in µs", "99th percentile in µs"], rows))
    write_json(options.json, "events", **found)
    return int(any(one["median_s"] > ALLOWED_S for one in found.values()))


if __name__ == "__main__":
    sys.exit(main())
