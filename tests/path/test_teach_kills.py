"""A post-training killed with ``kill -9`` at each stage boundary and in the middle of each stage: the same files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny_teaching import QUESTIONS, make

# Each attempt is a child of one process, which has imported everything.
_RUN = """
import os, signal, sys
from pathlib import Path
from armillary.path.predicted import teach_and_judge
from armillary.post.tuning import Handling
from armillary.recipe import load_teaching

recipe, out, points = map(Path, sys.argv[1:])

def attempt():
    used = set(points.read_text().split("\\n")) if points.exists() else None

    def progress(stage, done, total, note):
        if used is None:
            return
        for point in (f"{stage} begins", f"{stage} halfway"):
            if point not in used and (point.endswith("begins") or 2 * done >= total):
                with points.open("a") as file:
                    file.write(point + "\\n")
                os.kill(os.getpid(), signal.SIGKILL)

    teach_and_judge(load_teaching(recipe), out, Handling(progress))

kills = 0
while True:
    child = os.fork()
    if not child:
        code = 1
        try:
            attempt()
            code = 0
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code != -signal.SIGKILL:
        break
    kills += 1
print(kills)
sys.exit(code)
"""
# Times, and what is computed from files with times.
_VARIES = {"wall_s", "seconds", "recorded_at", "sha256", "head", "cost", "tokens_per_s", "journal", "events.jsonl"}
_SKIPPED = {"checkpoints", "store"}


def run(recipe: Path, out: Path, points: Path) -> int:
    """The number of kills until the post-training was finished."""
    command = [sys.executable, "-c", _RUN, str(recipe), str(out), str(points)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return int(subprocess.run(command, check=True, env=environment, stdout=subprocess.PIPE).stdout.split()[-1])


def plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: plain(one) for name, one in value.items() if name not in _VARIES}
    return [plain(one) for one in value] if isinstance(value, list) else value


def content(path: Path) -> Any:
    """What must be the same: all bytes; of records, all but times; of answers, all in any order."""
    if path.suffix == ".json":
        return plain(json.loads(path.read_text(encoding="utf-8")))
    if path.name.endswith("answers.jsonl") or path.name == "scores.jsonl":
        return sorted(path.read_bytes().splitlines())
    return path.read_bytes()


def files(out: Path) -> dict[str, Any]:
    found = {}
    for path in sorted(out.rglob("*")):
        inside = path.relative_to(out)
        hidden = any(part.startswith(".") or part in _SKIPPED for part in inside.parts)
        kept = path.suffix in (".json", ".jsonl", ".safetensors", ".bin") and not path.name.startswith("events")
        if path.is_file() and kept and not hidden:
            found[str(inside)] = content(path)
    return found


@pytest.mark.slow
def test_killed_at_every_boundary_and_halfway_it_leaves_the_same_files(tiny_hf: Path, tmp_path: Path) -> None:
    make(
        tmp_path,
        tiny_hf,
        questions={**QUESTIONS, "items": 60, "harder": 0},
        evolve={"items": 8, "samples": 1, "breadth": 1},
        sft={"epochs": 40, "lr": 0.02, "batch_tokens": 512, "precision": "fp32"},
        gain={},
        reject={"questions": 40, "samples": 4},
        merge={"evaluations": 3, "validation": 20},
        examine={"max_new_tokens": 30, "texts": {"prose": "prose.jsonl"}},
    )
    recipe, points = tmp_path / "teach.yaml", tmp_path / "points"
    assert run(recipe, tmp_path / "out", tmp_path / "none") == 0
    (tmp_path / "out").rename(tmp_path / "whole")  # both in one place, which some records name
    points.write_text("")
    kills = run(recipe, tmp_path / "out", points)
    whole, killed = files(tmp_path / "whole"), files(tmp_path / "out")
    print(f"{kills} kills, {len(whole)} files")
    assert kills > 40 and {"sft/model/model.safetensors", "sft-2.jsonl", "record.json"} <= whole.keys()
    assert whole.keys() == killed.keys()
    assert [name for name in whole if whole[name] != killed[name]] == []
