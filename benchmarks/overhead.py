"""Overhead of the framework over a bare training loop, on the same model and the same batches.

Runs ``train_run`` (order of the data, metrics, events, checkpoints by time, files at the end) and a loop of nothing but
forward, backward, clipping and optimizer over the same batches already in memory, in turn, and prints the median ratio
of their times. Two ratios: over the steps alone, and over the whole run from its first step to the written result, the
seconds of validation taken out. One thread, fp32, shapes of the proxies.

    python benchmarks/overhead.py [--repeats 7] [--steps 150]
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch

from armillary.corpus import Corpus, TokenOrder, build_corpus
from armillary.goodput import read_events
from armillary.model import Transformer
from armillary.recipe import (
    CorpusSpec,
    DomainSpec,
    Family,
    MixturePhase,
    OptimizerSpec,
    RunSpec,
    TokenizerSpec,
    Validation,
)
from armillary.train import build_optimizer, train_run

BATCH_SEQUENCES, CONTEXT = 8, 128


def bare(spec: RunSpec, batches: list[torch.Tensor]) -> float:
    """Seconds of a loop with nothing in it that the arithmetic does not need."""
    model = Transformer(spec.model)
    model.init_weights(spec.seed)
    optimizer = build_optimizer(model, spec)
    begin = time.perf_counter()
    for batch in batches:
        (model.loss(batch)[0] / batch[:, 1:].numel()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return time.perf_counter() - begin


def framework(spec: RunSpec, corpus: Corpus) -> tuple[float, float]:
    """Seconds of the steps alone, and of the run from its first step to its result without validation."""
    times: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        begin = None

        def progress(step: int) -> None:
            times.append(time.perf_counter())

        train_run(spec, corpus, Path(folder), progress=progress)
        end = time.perf_counter()
        looks = sum(e.duration_s or 0.0 for e in read_events(Path(folder) / "events.jsonl") if e.kind == "validation")
        # The first step has no beginning of its own in ``times``: take the mean of the others for it.
        steps = (times[-1] - times[0]) * len(times) / (len(times) - 1)
        begin = times[-1] - steps
    return steps, end - begin - looks


def main() -> None:
    """Measure every shape and print one JSON value."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--steps", type=int, default=150)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as root:
        domains = {name: DomainSpec(source=f"demo:{name}") for name in ("code", "technical")}
        corpus = build_corpus(CorpusSpec(domains=domains, tokenizer=TokenizerSpec(vocab_size=2048)), Path(root))
        rows = []
        for depth in (2, 3, 4):
            spec = RunSpec(
                corpus=corpus.hash,
                model=Family().shape(depth, corpus.vocab_size),
                context_length=CONTEXT,
                batch_sequences=BATCH_SEQUENCES,
                steps=options.steps,
                mixture=(MixturePhase(start_step=0, weights={"code": 0.7, "technical": 0.3}),),
                optimizer=OptimizerSpec(lr=1e-3),
                seed=0,
                validation=Validation(windows=1),
            )
            order = TokenOrder(corpus, spec.mixture, seed=0, context_length=CONTEXT, batch_sequences=BATCH_SEQUENCES)
            begin = time.perf_counter()
            batches = [torch.from_numpy(order.batch(step).tokens) for step in range(options.steps)]
            fetch = time.perf_counter() - begin
            bare(spec, batches[:20])
            pairs = [(bare(spec, batches), *framework(spec, corpus)) for _ in range(options.repeats)]
            rows.append(
                {
                    "depth": depth,
                    "parameters": spec.model.parameters,
                    "bare_tokens_per_s": spec.tokens / statistics.median(p[0] for p in pairs),
                    "ratio_steps": statistics.median(p[1] / p[0] for p in pairs),
                    "ratio_run": statistics.median(p[2] / p[0] for p in pairs),
                    "fetch_share_of_step": fetch / statistics.median(p[0] for p in pairs),
                }
            )
    print(json.dumps({"benchmark": "overhead", "repeats": options.repeats, "steps": options.steps, "rows": rows}))


if __name__ == "__main__":
    main()
