"""Tokens per second of one run over one or several processes, compared with a bare loop and Hugging Face.

Contestants, all on the same batches, initial weights, optimizer and learning rates:

- ours: ``armillary train FILE --nproc N`` as a user starts it, with data order, logging, checkpoints and validation;
  with several processes once with parameters in shards (FSDP2, as bare and plain), once with copies of them;
- bare: our model in a minimal loop, under FSDP2 with several processes (peers/ranks.py): the difference to ours is
  the overhead of the trainer;
- plain: the same loop around a model in idiomatic PyTorch;
- Hugging Face ``Trainer`` with ``LlamaForCausalLM``, over processes by accelerate (with copies), in a separate
  virtual environment.

They take turns, one thread per process, and validation losses at the end must agree to a hundredth of a nat.

Trade-offs: fp32 only. The first steps are not timed: two steps of the others (allocation, first collectives), and the
first ``FLUSH`` steps of ours, which reports its time in groups of this size. The time of ours includes checkpoints.
Validation is left out, because the timed part of the others has none.

    python benchmarks/train.py --json train.json
    python benchmarks/train.py --shapes 4x128 --ranks 2 --rounds 3
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from common import markdown, write_json
from fleet import SETTINGS, WARMUP, Setting, peer_job, synthetic_corpus, user_cache
from peers.processes import ENVIRONMENTS, HERE, environment, virtual_environment

from armillary.corpus import Corpus
from armillary.goodput import read_events
from armillary.recipe import ArmillaryError, read_result

AGREE = 0.01  # nats
CHECKPOINT_S = 10.0
COPIES = "ours, copies"


def ours(setting: Setting, corpus: Corpus, layout: dict[str, int], folder: Path) -> tuple[float, float]:
    """Tokens per second and validation loss of a run by the command line, in ``folder``."""
    folder.mkdir()
    spec = setting.spec(corpus.hash, 0, "fp32")
    document = {
        "name": "benchmark",
        "corpus": str(corpus.path),
        "run": spec.model_dump(mode="json"),
        "layout": layout,
        "checkpoints": {"every_s": CHECKPOINT_S},
    }
    file = folder / "run.yaml"
    file.write_text(yaml.safe_dump(document))
    command = [
        sys.executable,
        "-m",
        "armillary",
        "train",
        str(file),
        "--out",
        str(folder / "out"),
    ]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, env=one_thread())
    if ended.returncode:
        raise ArmillaryError(f"the run of the benchmark failed: {ended.stderr.strip()[-1000:]}")
    (events_file,) = (folder / "out").rglob("events.jsonl")
    first, *portions = [e for e in read_events(events_file) if e.kind == "progress"]
    if not portions:
        raise ArmillaryError(f"the run of {spec.steps} steps reported progress only once; give more --steps")
    seconds = sum(e.duration_s or 0.0 for e in portions)
    result = read_result(events_file.parent)
    assert result is not None
    (loss,) = result.loss.values()
    return (portions[-1].step - first.step) * spec.batch_tokens / seconds, loss


def theirs(
    name: str, python: str, setting: Setting, job: dict[str, Any], ranks: int, folder: Path
) -> tuple[float, float]:
    """The same of a peer under torchrun."""
    (folder / "job.json").write_text(json.dumps(job | {"precision": "fp32"}))
    launch = [python, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    command = [*launch, str(HERE / "ranks.py"), name, str(folder / "job.json"), str(folder / "answer.json")]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, env=one_thread())
    if ended.returncode:
        raise ArmillaryError(f"{name} failed: {ended.stderr.strip()[-1000:]}")
    answer = json.loads((folder / "answer.json").read_text())
    batch_tokens = job["sequences"] * job["context_length"]
    return (setting.steps - WARMUP) * batch_tokens / answer["seconds"], answer["loss"]


def one_thread() -> dict[str, str]:
    """This environment, with one thread for each process."""
    return environment() | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


def measure(setting: Setting, ranks: int, rounds: int, cache: Path, pythons: dict[str, str]) -> dict[str, Any]:
    """Turns of everyone at one shape and number of processes."""
    corpus = synthetic_corpus(cache, setting.vocab_size)
    layouts = {"ours": {"dp_shard": ranks}} | ({COPIES: {"dp_replicate": ranks}} if ranks > 1 else {})
    rates: dict[str, list[float]] = {name: [] for name in (*layouts, *pythons)}
    losses: dict[str, float] = {}
    for turn in range(rounds):
        print(f"{setting.name}, {ranks} processes: turn {turn + 1} of {rounds}", file=sys.stderr)
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            job = peer_job(setting, corpus, folder)
            turns = {name: ours(setting, corpus, layout, folder / name) for name, layout in layouts.items()}
            turns |= {name: theirs(name, python, setting, job, ranks, folder) for name, python in pythons.items()}
            for name, (rate, losses[name]) in turns.items():
                rates[name].append(rate)
    return {"name": setting.name, "ranks": ranks, "tokens_per_s": rates, "loss": losses}


def table(rows: list[dict[str, Any]]) -> str:
    """Who trains how fast."""
    lines = []
    for row in rows:
        for name, rates in row["tokens_per_s"].items():
            of = []
            for mine in ("ours", COPIES):
                ratios = [a / b for a, b in zip(row["tokens_per_s"].get(mine, []), rates, strict=False)]
                known = ratios and name != mine
                of.append(f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})" if known else "")
            rate = f"{statistics.median(rates):,.0f}"
            lines.append([row["name"], str(row["ranks"]), name, rate, *of, f"{row['loss'][name]:.4f}"])
    ratios_of = ["speedup of ours", f"speedup of {COPIES}"]
    return markdown(["model", "processes", "trainer", "tokens/s", *ratios_of, "validation loss"], lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [setting.name for setting in SETTINGS]
    parser.add_argument("--shapes", nargs="+", choices=names, default=["4x128", "6x256"], help="layers x width")
    parser.add_argument("--ranks", nargs="+", type=int, default=[1, 2], help="numbers of processes (default 1 2)")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each (default 3)")
    parser.add_argument("--steps", type=int, default=100, help="steps of each run (default 100)")
    parser.add_argument("--cache", type=Path, default=user_cache(), help="folder of environments and corpora")
    parser.add_argument("--json", type=Path, help="file for all that was measured")
    options = parser.parse_args()
    options.cache.mkdir(parents=True, exist_ok=True)
    name = "hugging-face"
    python, problem = virtual_environment(options.cache / f"venv-{name}", ENVIRONMENTS[name])
    if problem:
        sys.exit(f"{name}: {problem}")
    pythons = {"bare": sys.executable, "plain": sys.executable, name: python}
    settings = [replace(s, steps=options.steps) for s in SETTINGS if s.name in options.shapes]
    rows = [
        measure(setting, ranks, options.rounds, options.cache, pythons)
        for setting in settings
        for ranks in options.ranks
    ]
    print(table(rows))
    write_json(options.json, "train", rows=rows, cores=len(os.sched_getaffinity(0)))
    apart = [
        f"{row['name']}, {row['ranks']} processes: the loss of {name} differs by {abs(loss - row['loss']['ours']):.4f}"
        for row in rows
        for name, loss in row["loss"].items()
        if not abs(loss - row["loss"]["ours"]) < AGREE
    ]
    if apart:
        sys.exit("\n".join(apart))


if __name__ == "__main__":
    main()
