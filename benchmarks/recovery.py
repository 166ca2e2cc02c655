"""Recovery of a run over four ranks, with warm ranks and cold: seconds from a fault to the next finished step.

Warm: ``armillary train`` runs, a rank is killed now and then, and all ranks restart from a process that has imported
everything. Cold: all processes of the run are killed at once, as with a machine, and the command is started again.
Each is one run that is killed ``--kills`` times. Its ledger has the times (``recovery_s``).

With ``--compile`` the layers are compiled (``layout.compile``, with PyTorch's operators instead of the C kernels). Then
a restart also reads the compiled code from the compiler's cache.

    python benchmarks/recovery.py --kills 9 [--compile] [--json recovery.json]
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml
from common import markdown, write_json
from faults import SMALL, all_events, documents

from armillary.goodput import EventWriter, read_ledger
from armillary.recipe import read_spec

GOALS_S = {"warm": 8.0, "cold": 20.0}
STEPS = 100_000  # more than a run takes; it is stopped after the last recovery
BETWEEN_S = 3.0  # at least, from a recovery to the next fault


def start(file: Path, run: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    """The command of a run, in a separate process group."""
    command = [sys.executable, "-m", "armillary", "train", str(file), "--out", str(run), "--max-restarts", "5"]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )


def wait_for(run: Path, attempts: int, process: subprocess.Popen[bytes]) -> None:
    """Wait until the first step of this many attempts is finished.

    Raises:
        RuntimeError: the run has ended.
    """
    while True:
        with contextlib.suppress(Exception):  # there is no file yet
            if sum(event.kind == "running" and event.rank == 0 for event in all_events(run)) >= attempts:
                return
        if process.poll() is not None:
            raise RuntimeError(f"the run ended with status {process.returncode}")
        time.sleep(0.2)


def ranks_of(process: subprocess.Popen[bytes]) -> list[int]:
    """The processes of the ranks: those forked from the fork server that have threads."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError):
            session = path.joinpath("stat").read_text().rpartition(") ")[2].split()[3]
            forked = b"forkserver" in path.joinpath("cmdline").read_bytes()
            if int(session) == process.pid and forked and len(list(path.joinpath("task").iterdir())) > 2:
                found.append(int(path.name))
    return found


def recoveries(file: Path, run: Path, kills: int, cold: bool, environment: dict[str, str]) -> list[float]:
    """Kill a run this many times; the seconds from each fault to the next finished step, by the ledger."""
    rng = random.Random(0)
    process = start(file, run, environment)
    try:
        for number in range(kills):
            wait_for(run, number + 1, process)
            time.sleep(BETWEEN_S + rng.random())
            victims = ranks_of(process)
            with EventWriter(run / "events.jsonl", read_spec(run).id) as events:
                events.write("fault", 0, problem="all" if cold else "kill", injected=True, ends=True)
            if cold:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                process = start(file, run, environment)
            else:
                os.kill(rng.choice(victims), signal.SIGKILL)
        wait_for(run, kills + 1, process)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    found = read_ledger(run)
    return (
        [sum(both) for both in zip(found.detection_s, found.recovery_s, strict=True)]
        if not cold
        else [*found.recovery_s]
    )


def main() -> int:
    """Measure both ways; the exit status is 1 if a median is over its goal."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=9)
    parser.add_argument("--compile", action="store_true", help="with compiled layers")
    parser.add_argument("--ways", nargs="+", choices=tuple(GOALS_S), default=list(GOALS_S))
    parser.add_argument("--json", type=Path, help="where to write the numbers")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # ends the run, too
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    measured: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file = documents(folder, STEPS, 2, SMALL)["dp4"]
        if options.compile:
            environment |= {"ARMILLARY_NATIVE": "0", "TORCHINDUCTOR_CACHE_DIR": str(folder / "compiled")}
            document = yaml.safe_load(file.read_text(encoding="utf-8"))
            document["layout"]["compile"] = True
            file.write_text(yaml.safe_dump(document), encoding="utf-8")
        for way in options.ways:
            measured[way] = recoveries(file, folder / way, options.kills, way == "cold", environment)
    rows = [
        [way, str(len(times)), f"{statistics.median(times):.1f}", f"{max(times):.1f}", f"{GOALS_S[way]:.0f}"]
        for way, times in measured.items()
    ]
    print(markdown(["restart", "faults", "median in s", "at most", "goal"], rows))
    write_json(options.json, "recovery", compiled=options.compile, **measured)
    return int(any(statistics.median(times) > GOALS_S[way] for way, times in measured.items()))


if __name__ == "__main__":
    sys.exit(main())
