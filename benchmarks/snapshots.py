"""The cost of snapshots: blocks of steps with and without them alternate within one run.

Each pair of adjacent blocks gives a ratio of times, so slow changes of the machine's load cancel. The table has the
mean ratio with its 95 % interval, beside the share of the time that training waited for snapshots, as in the events.
The rest of the cost is what the writing threads take from the steps beside them.

There is one rank per core.

    python benchmarks/snapshots.py [--pairs 12] [--block 6] [--every 3] [--ranks 2] [--json snapshots.json]
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import statistics
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import markdown, write_json
from faults import documents
from scipy.stats import t as student

from armillary.corpus import Corpus
from armillary.goodput import read_events
from armillary.launch.ranks.group import joined
from armillary.launch.ranks.local import RankContext, start_ranks
from armillary.recipe import Checkpoints, LargeRun, Layout, RunSpec, load_training
from armillary.train import train_ranks
from armillary.train.hooks import Save

LARGE = (6, 512, 1408, 128)  # layers, width, hidden width, context length
ALLOWED = 0.02


def train(spec: RunSpec, corpus: Path, folder: Path, every: int, block: int, context: RankContext) -> list[float]:
    """Train as one of the ranks, with snapshots in every second block; the times at which steps were finished."""
    times: list[float] = []
    due = Save.due

    def in_second_blocks(self: Save, step: int) -> bool:
        if self.kind != "snapshot":
            return due(self, step)
        number, place = divmod(step - 1, block)
        return number % 2 == 1 and place % every == 0  # the first steps, so that it is written within the block

    Save.due = in_second_blocks
    with joined() as device:
        train_ranks(
            spec,
            Corpus.open(corpus),
            folder,
            Layout(dp_replicate=int(os.environ["WORLD_SIZE"])),
            checkpoints=Checkpoints(every_s=1e9, snapshot_every_steps=every),
            device=device,
            progress=lambda step: times.append(time.perf_counter()),
            stop=context.stop,
        )
    return times


def main() -> int:
    """Measure; the exit status is 1 if snapshots cost more than the allowed share, also at the interval's lower end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=12, help="pairs of blocks; one more before them does not count")
    parser.add_argument("--block", type=int, default=6, help="steps of a block (default 6)")
    parser.add_argument("--every", type=int, default=3, help="steps between two snapshots (default 3)")
    parser.add_argument("--ranks", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--json", type=Path, help="where to write the numbers")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder, block = Path(name), options.block
        steps = 2 * block * (options.pairs + 1)
        large = load_training(documents(folder, steps, None, LARGE)["dp4"])
        assert isinstance(large, LargeRun)
        corpus = Path(large.corpus)
        spec = large.run.model_copy(update={"corpus": Corpus.open(corpus).hash})
        act = partial(train, spec, corpus, folder / "run", options.every, block)
        times = start_ranks(act, options.ranks)
        events = list(read_events(folder / "run" / "events.jsonl"))
    waited = [e.duration_s or 0.0 for e in events if e.kind == "snapshot" and e.step > 2 * block]
    ends = [times[end - 1] for end in range(block, steps + 1, block)]
    lengths = [later - before for before, later in itertools.pairwise(ends)][1:]
    ratios = [math.log(withs / without) for without, withs in zip(lengths[0::2], lengths[1::2], strict=True)]
    mean, spread = statistics.mean(ratios), statistics.stdev(ratios) / math.sqrt(len(ratios))
    reach = float(student.ppf(0.975, len(ratios) - 1)) * spread
    found: dict[str, Any] = {
        "step_s": statistics.median(lengths[0::2]) / block,
        "cost": math.expm1(mean),
        "interval": [math.expm1(mean - reach), math.expm1(mean + reach)],
        "waited_s": statistics.median(waited),
        "waited_share": sum(waited) / sum(lengths[1::2]),
        "pairs": len(ratios),
    }
    low, high = found["interval"]
    rows = [[f"{found['step_s']:.2f} s", f"{found['waited_s'] * 1e3:.0f} ms", f"{found['waited_share']:.2%}",
             f"{found['cost']:+.2%} ({low:+.2%} to {high:+.2%})"]]  # fmt: skip
    print(markdown(["a step", "waited for a snapshot", "waited, of the steps", "longer steps (95 %)"], rows))
    write_json(options.json, "snapshots", **found)
    return int(low > ALLOWED)


if __name__ == "__main__":
    sys.exit(main())
