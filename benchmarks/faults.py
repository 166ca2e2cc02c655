"""A run over four ranks with injected faults, compared with the same run without faults.

``armillary train`` runs each layout twice: undisturbed, and with faults of all kinds at random steps and ranks. A table
shows, for each kind of fault, the seconds until it was detected, the seconds from then to the next finished step, and
the steps that were repeated. It also shows whether both runs end with the same weights. All figures come from the
events of the runs; their ledgers are printed below the table.

The four ranks count as two machines of two. The fault ``node`` kills both ranks of one and removes its memory.

``--against-simulator`` instead injects faults at a rate, and compares the ledger of that run with the simulator and
the exact formula, which use its measurements: time between faults, times to detect and to recover, and the blocking
time of snapshots.

Trade-offs: a corrupted checkpoint is only found when it is read, so it counts as detected where a restart met it. On a
machine with fewer cores than ranks steps are slow, and so is a restart.

    python benchmarks/faults.py --faults 30 --steps 600 --json faults.json
    python benchmarks/faults.py --against-simulator --mtbf 20 --steps 3000 --snapshot 25
    armillary goodput compare RUN    # the same comparison for any run with faults
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import yaml
from common import corpus_of, markdown, run_spec, shape, write_json

from armillary.goodput import (
    ALLOWED,
    Event,
    compare,
    event_files,
    read_events,
    read_ledger,
)
from armillary.resilience import KINDS, Faults, RandomFaults, load_faults

DOMAIN = "words"
SMALL = (2, 64, 128, 64)  # layers, width, hidden width, context length
ENDING = ("kill", "stop", "hang", "network", "node")
LAYOUTS = {"dp4": {"dp_replicate": 4}, "dp2×tp2": {"dp_replicate": 2, "tp": 2}}


def documents(folder: Path, steps: int, snapshot: int | None, size: tuple[int, int, int, int]) -> dict[str, Path]:
    """The file of a large run of a model of ``size`` for each layout, over a corpus of counting lines."""
    text = folder / "counting.txt"
    text.write_text("\n".join(" ".join(str(n * k) for n in range(1, 12)) for k in range(1, 6000)), encoding="utf-8")
    corpus = corpus_of({DOMAIN: str(text)}, 512, folder / "corpora")
    *sides, context_length = size
    spec = run_spec(
        shape(*sides, corpus.vocab_size),
        {DOMAIN: 1.0},
        lr=1e-3,
        corpus="",
        context_length=context_length,
        batch_sequences=8,
        steps=steps,
        seed=1,
        precision="fp32",
    )
    run = spec.model_dump(mode="json", exclude={"corpus"})
    files = {}
    for name, layout in LAYOUTS.items():
        files[name] = folder / f"{name}-{snapshot}.yaml"
        document = {"name": name, "corpus": str(corpus.path), "run": run, "layout": layout}
        document["checkpoints"] = {"every_steps": 50, **({"snapshot_every_steps": snapshot} if snapshot else {})}
        files[name].write_text(yaml.safe_dump(document), encoding="utf-8")
    return files


def train(file: Path, out: Path, *more: str) -> None:
    """Carry out a run with one thread per rank; an error is that of the command."""
    command = [sys.executable, "-m", "armillary", "train", str(file), "--out", str(out), "--max-restarts", "5", *more]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)


def all_events(run: Path) -> list[Event]:
    """The events of all ranks by time."""
    return sorted((e for file in event_files(run).values() for e in read_events(file)), key=lambda e: e.time_s)


def reactions(events: list[Event]) -> dict[str, list[tuple[float | None, float | None, int]]]:
    """For each injected fault by kind: seconds until it was found, until a step was finished, and steps taken twice."""
    found: dict[str, list[tuple[float | None, float | None, int]]] = defaultdict(list)
    for place, fault in enumerate(events):
        if fault.kind != "fault" or not fault.data.get("injected"):
            continue
        kind = str(fault.data["problem"])
        detected = next((e for e in events[place + 1 :] if _is_found(kind, fault, e)), None)
        if detected is None:
            found[kind].append((None, None, 0))
            continue
        later = events[events.index(detected) + 1 :]
        again = next((e for e in later if e.kind in ("resume", "restored", "start")), None)
        first = next((e for e in later if e.kind in ("running", "progress")), None)
        rolled = kind in (*ENDING, "flip")
        lost = max(0, fault.step - again.step) if rolled and again is not None else 0
        recovery = first.time_s - detected.time_s if rolled and first is not None else None
        found[kind].append((detected.time_s - fault.time_s, recovery, lost))
    return found


def _is_found(kind: str, fault: Event, event: Event) -> bool:
    """Whether ``event`` says that ``fault`` was noticed."""
    if kind == "slow":
        return event.kind == "straggler" and event.data.get("culprit") == fault.rank
    if kind in ("disk", "corrupt"):
        return event.kind == "fault" and "checkpoint" in event.data
    found = event.data.get("found")
    wanted = {"nan": ("not finite",), "flip": ("lost step",)}.get(kind, ("dead", "frozen", "hung"))
    return event.kind == "detected" and found in wanted


def middle(values: list[float | None], unit: str) -> str:
    """Median and largest of what is known."""
    known = [value for value in values if value is not None]
    return f"{statistics.median(known):.2f} (at most {max(known):.2f}) {unit}" if known else "-"


def planned(count: int, steps: int, seed: int) -> dict[str, Any]:
    """``count`` faults of all kinds; slow ranks come last, where no restart ends them before they are found."""
    slow = count // len(KINDS[:-1])
    first = steps - 50 * slow
    late = [{"kind": "slow", "rank": n % 4, "step": first + 50 * n, "steps": 40} for n in range(slow)]
    kinds = [kind for kind in KINDS[:-1] if kind != "slow"]
    drawn = Faults(nodes=2, draw=RandomFaults(count=count - slow, kinds=kinds, seed=seed, first_step=5)).plan(
        first - 10, 4
    )
    return {"nodes": 2, "faults": [*(fault.model_dump(exclude_none=True) for fault in drawn), *late]}


def against_simulator(folder: Path, steps: int, snapshot: int, mtbf_s: float, seed: int) -> dict[str, Any]:
    """A run that fails at a rate, beside the simulator and the formula with what was measured in the run."""
    file, run = documents(folder, steps, snapshot, SMALL)["dp4"], folder / "at-a-rate"
    plan = folder / "rate.yaml"
    plan.write_text(yaml.safe_dump({"rate": {"mtbf_s": mtbf_s, "kinds": ["kill", "stop"], "seed": seed}}))
    train(file, run, "--inject", str(plan), "--max-restarts", "50")
    return compare(run, seed)


def show_comparison(found: dict[str, Any]) -> int:
    """Print it; 1 if the goodput of the run is too far from the simulated one."""
    print(", ".join(f"{name} {value:.3g}" for name, value in found["measured"].items()))
    print(markdown(["run", "simulated", "formula"], [[f"{found[n]:.1%}" for n in ("goodput", "simulated", "formula")]]))
    return int(abs(found["goodput"] - found["simulated"]) > ALLOWED)


def main() -> int:
    """Run all layouts; the exit status is 1 if any run ends with other weights."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=30, help="for each layout (default 30)")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--snapshot", type=int, default=2, help="steps between two snapshots (default 2)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--layouts", nargs="+", choices=LAYOUTS, default=list(LAYOUTS))
    parser.add_argument("--against-simulator", action="store_true", help="compare a run with faults at a rate")
    parser.add_argument("--mtbf", type=float, default=20.0, help="seconds between two faults at a rate (default 20)")
    parser.add_argument("--json", type=Path, help="where to write the numbers")
    options = parser.parse_args()
    measured: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.against_simulator:
            compared = against_simulator(folder, options.steps, options.snapshot, options.mtbf, options.seed)
            write_json(options.json, "faults against simulator", **compared)
            return show_comparison(compared)
        files = documents(folder, options.steps, options.snapshot, SMALL)
        plan = folder / "faults.yaml"
        plan.write_text(yaml.safe_dump(planned(options.faults, options.steps, options.seed)), encoding="utf-8")
        kinds = Counter(fault.kind for fault in load_faults(plan).plan(options.steps, 4))
        for layout in options.layouts:
            whole, broken = folder / f"{layout}-whole", folder / f"{layout}-broken"
            train(files[layout], whole)
            train(files[layout], broken, "--inject", str(plan))
            same = (whole / "model.safetensors").read_bytes() == (broken / "model.safetensors").read_bytes()
            found = reactions(all_events(broken))
            print(f"\n{layout}: {sum(map(len, found.values()))} faults of {sum(kinds.values())}, final weights "
                  f"{'bit for bit the same' if same else 'OTHERS'}\n")  # fmt: skip
            rows = [
                [
                    kind, str(len(of_kind)), str(sum(one[0] is not None for one in of_kind)),
                    middle([one[0] for one in of_kind], "s"), middle([one[1] for one in of_kind], "s"),
                    str(max(one[2] for one in of_kind)),
                ]
                for kind, of_kind in sorted(found.items())
            ]  # fmt: skip
            print(markdown(["fault", "count", "found", "found after", "next step after", "steps lost, most"], rows))
            ending = [one for kind in ENDING for one in found[kind]]
            said = middle([one[0] for one in ending], "s"), middle([one[1] for one in ending], "s")
            print(f"\nfaults that end training: found after {said[0]}, next step after {said[1]}")
            ledgers = {word: read_ledger(run).to_json() for word, run in (("undisturbed", whole), ("broken", broken))}
            for word, one in ledgers.items():
                losses = ", ".join(f"{k} {v:.1f}" for k, v in one["losses_s"].items() if v >= 0.05)
                print(f"{word}: {one['elapsed_s']:.0f} s, goodput {one['goodput']:.1%}; losses in s: {losses}")
            measured[layout] = {"same": same, "faults": found, **ledgers}
    write_json(options.json, "faults", **measured)
    return int(not all(one["same"] for one in measured.values()))


if __name__ == "__main__":
    sys.exit(main())
