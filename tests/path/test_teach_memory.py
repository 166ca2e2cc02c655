"""The data stages of a post-training and their joins need no more memory for many items than for few."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_teaching import make

FAMILIES = ["tally", "purchase", "discount", "average", "travel", "linear", "remainder", "conversion"]
_RUN = """
import resource, sys
from pathlib import Path
from armillary.path.teach import teach
from armillary.post.tuning import Handling
from armillary.recipe import load_teaching
from armillary.train import InterruptedRunError

reached = set()
def progress(stage, done, total, note):
    reached.add(stage)
try:
    teach(load_teaching(Path(sys.argv[1])), Path(sys.argv[2]), Handling(progress, lambda: "0.125.jsonl" in reached))
except InterruptedRunError:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10)
"""


def peak_mib(folder: Path, model: Path, items: int) -> int:
    """The memory of a process up to the first fine-tuning on a part of ``items`` questions."""
    folder.mkdir()
    questions = {"items": items, "held_out": 4, "families": FAMILIES}
    make(
        folder,
        model,
        questions=questions,
        evolve={"items": 2, "samples": 1, "breadth": 1},
        decontaminate=["prose.jsonl"],
        reject=None,
        dpo=None,
        merge=None,
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", _RUN, str(folder / "teach.yaml"), str(folder / "out")]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    assert done.stdout, done.stderr
    return int(done.stdout)


@pytest.mark.slow
def test_a_hundred_thousand_items_need_the_memory_of_a_few(tiny_hf: Path, tmp_path: Path) -> None:
    few, many = (peak_mib(tmp_path / str(items), tiny_hf, items) for items in (30_000, 150_000))
    clean = tmp_path / "150000" / "out" / "questions-clean" / "items.jsonl"
    parts = tmp_path / "150000" / "out" / "gain" / "0.125.jsonl"
    with open(clean, "rb") as whole, open(parts, "rb") as part:
        kept, chosen = sum(1 for _ in whole), sum(1 for _ in part)
    print(f"{kept} items: {few} MiB with 30,000 questions, {many} MiB with 150,000")
    assert kept > 100_000 and chosen == round(kept / 8)
    assert many - few < 80  # the sets of seen items, and batches that 30,000 items do not fill
