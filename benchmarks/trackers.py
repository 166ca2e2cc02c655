"""What a tracker costs a training: the hook's call per step, and the CPU time per step of the process beside it.

Prints a table and writes `benchmarks/trackers.json`. Trackers whose package is missing are left out.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "trackers"))

from made_runs import made_run, made_spec

from armillary.trackers import Destination, RunFiles, Track
from armillary.trackers.hook import EVERY
from armillary.trackers.mirror import Mirror

STEPS = 5000
CALLS = 20_000


def hook_us(where: Destination, folder: Path) -> float:
    """Microseconds of the hook per step, while its process runs."""
    hook = Track(where, folder)
    run = SimpleNamespace(world=SimpleNamespace(rank=0))
    hook.act(run)
    begin = time.perf_counter()
    for step in range(CALLS):
        if hook.due(step):
            hook.act(run)
    took = time.perf_counter() - begin
    hook.close()
    return 1e6 * took / CALLS


def start_ms(where: Destination, folder: Path) -> float:
    """Milliseconds that starting the process takes, once for a run."""
    hook = Track(where, folder)
    begin = time.perf_counter()
    hook.follower.start()
    took = time.perf_counter() - begin
    hook.close()
    return 1e3 * took


def write_us(where: Destination, folder: Path) -> float:
    """Microseconds of CPU time per step of what the process beside the training does."""
    mirror = Mirror(RunFiles(folder), where)
    begin = time.process_time()
    rows = mirror.sync()
    took = time.process_time() - begin
    mirror.close()
    assert rows == STEPS
    return 1e6 * took / rows


def main() -> None:
    """Measure every tracker that is installed."""
    found = {}
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        made_run(root / "short", made_spec())
        made_run(root / "run", made_spec(steps=STEPS))
        for tracker in ("tensorboard", "mlflow", "wandb", "trackio"):
            if importlib.util.find_spec(tracker) is None:
                continue
            place = f"sqlite:///{root / 'mlflow.db'}" if tracker == "mlflow" else str(root / tracker)
            where = Destination(tracker, place, "benchmark")
            first = Mirror(RunFiles(root / "short"), where)  # imports, and a database that is made
            first.sync()
            first.close()
            found[tracker] = {
                "hook_us_per_step": hook_us(where, root / "short"),
                "start_ms": start_ms(where, root / "short"),
                "writer_cpu_us_per_step": write_us(where, root / "run"),
            }
            print(tracker, {name: round(value, 2) for name, value in found[tracker].items()}, flush=True)
    print(f"the hook is due every {EVERY} steps")
    Path(__file__).with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
