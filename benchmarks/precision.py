"""The effect of bf16 on quality: the final validation loss of proxies trained in bf16 and in fp32, in pairs.

Each shape is trained with several seeds in both precisions: the two runs of a pair have the same initial weights and
the same batches, and differ only in precision. The table has the mean difference within pairs with its standard error,
and the difference between seeds in fp32. If the former is smaller than the latter, a study cannot notice the effect of
bf16; otherwise the benchmark fails.

A study's executor runs them on the demonstration's texts, one worker per core.

Trade-off: on a processor that emulates bf16 a run takes 10 to 30 times as long as in fp32, so runs are short by
default (about 31 thousand tokens each; some minutes on two cores). Where bf16 is fast, ask for more steps.

    python benchmarks/precision.py
    python benchmarks/precision.py --steps 2000 --seeds 8 --json precision.json
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import tempfile
import time
from itertools import combinations
from pathlib import Path
from typing import Any

from common import corpus_of, markdown, run_all, run_spec, shape, write_json

from armillary.corpus import Corpus
from armillary.launch import LocalExecutor
from armillary.recipe import ArmillaryError, RunSpec, Schedule, Validation
from armillary.store import Store

DOMAINS = ("code", "technical")
VOCAB_SIZE, CONTEXT, SEQUENCES = 1024, 64, 8
PRECISIONS = ("fp32", "bf16")
SHAPES = {
    f"{layers}x{width}": shape(layers, width, hidden, VOCAB_SIZE)
    for layers, width, hidden in ((2, 64, 192), (3, 96, 256), (4, 128, 352))
}


def one_of_a_pair(corpus: Corpus, name: str, seed: int, precision: str, steps: int) -> RunSpec:
    """One run of a pair."""
    return run_spec(
        SHAPES[name],
        {name: 1 / len(DOMAINS) for name in DOMAINS},
        lr=4e-3,
        corpus=corpus.hash,
        context_length=CONTEXT,
        batch_sequences=SEQUENCES,
        steps=steps,
        schedule=Schedule(warmup_steps=steps // 10, decay_steps=steps // 5),
        seed=seed,
        precision=precision,
        validation=Validation(windows=64),
    )


def compare(shape: str, losses: dict[str, list[float]]) -> dict[str, Any]:
    """Paired difference of the precisions and difference between seeds; losses in the order of the seeds."""
    single = losses["fp32"]
    differences = [half - full for full, half in zip(single, losses["bf16"], strict=True)]
    return {
        "shape": shape,
        "losses": losses,
        "difference": statistics.mean(differences),
        "standard_error": statistics.stdev(differences) / math.sqrt(len(differences)),
        "largest": max(map(abs, differences)),
        "seed_deviation": statistics.stdev(single),
        "between_seeds": statistics.mean(abs(a - b) for a, b in combinations(single, 2)),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """The comparison as Markdown; losses in nats per token."""
    columns = ["model", "seeds", "fp32", "bf16 minus fp32, mean ± standard error", "largest in a pair"]
    columns += ["standard deviation of seeds", "two seeds differ by"]
    lines = []
    for row in rows:
        single = row["losses"]["fp32"]
        lines.append(
            [
                row["shape"],
                str(len(single)),
                f"{statistics.mean(single):.4f}",
                f"{row['difference']:+.5f} ± {row['standard_error']:.5f}",
                f"{row['largest']:.5f}",
                f"{row['seed_deviation']:.4f}",
                f"{row['between_seeds']:.4f}",
            ]
        )
    return markdown(columns, lines)


def main() -> None:
    """Train all pairs and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=6, help="pairs of each shape, at least 2 (default 6)")
    parser.add_argument("--steps", type=int, default=60, help=f"steps of {SEQUENCES * CONTEXT} tokens (default 60)")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES), help="layers x width")
    parser.add_argument("--json", type=Path, help="file for all that was measured")
    options = parser.parse_args()
    if options.seeds < 2 or options.steps < 10:
        parser.error("give at least 2 seeds and 10 steps")
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        corpus = corpus_of({name: f"demo:{name}" for name in DOMAINS}, VOCAB_SIZE, Path(scratch) / "corpora")
        specs = {
            (name, precision, seed): one_of_a_pair(corpus, name, seed, precision, options.steps)
            for name in options.shapes
            for precision in PRECISIONS
            for seed in range(options.seeds)
        }

        def progress(stage: str, done: float, total: float, note: str) -> None:
            print(f"\r{time.perf_counter() - begun:5.0f} s  {note}", end="", file=sys.stderr)

        with LocalExecutor(Store(Path(scratch) / "store"), corpus.path) as executor:
            results = run_all(executor, "precision", list(specs.values()), progress)
    print(file=sys.stderr)
    losses = {run: statistics.mean(result.loss.values()) for run, result in zip(specs, results, strict=True)}
    rows = [
        compare(name, {p: [losses[name, p, seed] for seed in range(options.seeds)] for p in PRECISIONS})
        for name in options.shapes
    ]
    took = time.perf_counter() - begun
    tokens = options.steps * SEQUENCES * CONTEXT
    print(f"{table(rows)}\n\n{tokens:,} tokens a run, {took:.0f} s.")
    write_json(options.json, "precision", seconds=took, tokens=tokens, rows=rows)
    worse = [row["shape"] for row in rows if not abs(row["difference"]) < row["between_seeds"]]
    if worse:
        raise ArmillaryError(f"bf16 differs from fp32 by more than seeds do: {', '.join(worse)}")


if __name__ == "__main__":
    try:
        main()
    except ArmillaryError as error:
        sys.exit(f"error {error}")
