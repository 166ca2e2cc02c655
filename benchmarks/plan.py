"""The planner's step time against the trainer's on this machine, for small models over 1, 2 and 4 processes.

In each round and for each number of processes the machine is measured (``armillary plan measure``, as many at once),
and ``armillary train`` runs each model. Rounds alternate over the numbers of processes, because the speed of a shared
machine changes: a prediction is compared with the runs right after its measurement. The median over the rounds counts.
Nothing is fitted to the runs.

    python benchmarks/plan.py --json plan.json
    python benchmarks/plan.py --shapes 6x256 --ranks 2 --rounds 1
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from common import markdown, write_json
from fleet import SEQUENCES, SETTINGS, Setting, synthetic_corpus, user_cache

from armillary.parallel import measure_machine
from armillary.plan import Job, Parallelism, read_accelerator, step_time
from armillary.plan.constants import constants
from armillary.plan.software_files import software
from train import one_thread, ours

WITHIN = 0.15


def predicted(setting: Setting, ranks: int, hardware: Path) -> float:
    """Seconds of a step on the measured machine."""
    parallelism = Parallelism(dp=ranks, micro_batch=SEQUENCES // ranks, zero=3 if ranks > 1 else 0)
    job = Job(
        setting.shape, parallelism, setting.context_length, SEQUENCES, read_accelerator(hardware),
        software("armillary"), "fp32",
    )  # fmt: skip
    return step_time(job, constants()).total


def main() -> None:
    """Measure, predict, run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=["4x128", "6x256"], help="layers x width")
    parser.add_argument("--ranks", nargs="+", type=int, default=[1, 2, 4], help="numbers of processes")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each (default 3)")
    parser.add_argument("--steps", type=int, default=40, help="steps of each run (default 40)")
    parser.add_argument("--cache", type=Path, default=user_cache(), help="folder of corpora")
    parser.add_argument("--json", type=Path, help="file for all that was measured")
    options = parser.parse_args()
    options.cache.mkdir(parents=True, exist_ok=True)
    settings = [replace(s, steps=options.steps) for s in SETTINGS if s.name in options.shapes]
    unknown = set(options.shapes) - {setting.name for setting in settings}
    if unknown:
        parser.error(f"--shapes {' '.join(sorted(unknown))}: known are {', '.join(s.name for s in SETTINGS)}")
    if any(SEQUENCES % ranks for ranks in options.ranks):
        parser.error(f"--ranks: each must divide a batch of {SEQUENCES} sequences")
    pairs: dict[tuple[str, int], list[tuple[float, float]]] = {}
    begin, turns = time.monotonic(), [(turn, ranks) for turn in range(options.rounds) for ranks in options.ranks]
    for done, (turn, ranks) in enumerate(turns):
        spent = time.monotonic() - begin
        left = f", {spent / done * (len(turns) - done):.0f} s left" if done else ""
        print(f"round {turn + 1} of {options.rounds}, {ranks} processes{left}", file=sys.stderr)
        with tempfile.TemporaryDirectory() as scratch:
            hardware = Path(scratch) / "hardware.toml"
            measure_machine(ranks, hardware)
            for setting in settings:
                corpus = synthetic_corpus(options.cache, setting.vocab_size)
                rate, _ = ours(setting, corpus, {"dp_shard": ranks}, Path(scratch) / setting.name)
                pair = predicted(setting, ranks, hardware), SEQUENCES * setting.context_length / rate
                pairs.setdefault((setting.name, ranks), []).append(pair)
    rows = [
        {"name": name, "ranks": ranks, "predicted_s": [a for a, _ in found], "measured_s": [b for _, b in found],
         "ratio": statistics.median(a / b for a, b in found)}
        for (name, ranks), found in pairs.items()
    ]  # fmt: skip
    lines = [
        [row["name"], str(row["ranks"]), f"{1e3 * statistics.median(row['predicted_s']):.0f} ms",
         f"{1e3 * statistics.median(row['measured_s']):.0f} ms", f"{row['ratio']:.2f}"]
        for row in rows
    ]  # fmt: skip
    off = [row for row in rows if abs(float(row["ratio"]) - 1) > WITHIN]
    print(markdown(["model", "processes", "predicted step", "measured step", "ratio"], lines))
    print(f"{len(rows) - len(off)} of {len(rows)} within {WITHIN:.0%}; {time.monotonic() - begin:.0f} s")
    write_json(options.json, "plan", rows=rows, environment={"OMP_NUM_THREADS": one_thread()["OMP_NUM_THREADS"]})


if __name__ == "__main__":
    main()
