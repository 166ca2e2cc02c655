"""Whether proxies that repeat their text as often as the target find a better mixture.

Three domains of demonstration text: one large, and two of ``--small`` tokens whose losses are the target. A target run
of ``--tokens`` tokens repeats the small ones several times; a plain proxy hardly sees them once, so it does not learn
what repetition costs. The mixture study runs twice, with ``study.match_repetition`` false and true, with the same
design and seeds and no limit on passes. The mixture of each, and the natural one, is then trained at the target's size
with the same seeds; differences are paired by seed, with a 95 % interval by Student's t.

    python benchmarks/repetition.py --json repetition.json
    python benchmarks/repetition.py --quick
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # one process per core

import numpy as np
from common import corpus_of, markdown, run_all, write_json
from scipy import stats
from tokenizers import Tokenizer

from armillary.corpus import Corpus
from armillary.launch import LocalExecutor
from armillary.recipe import Recipe, RunSpec
from armillary.store import Store
from armillary.study import Annealing, Found, Lab, MixtureOutcome, Plan, mixture_study, target_spec

LARGE, SMALL = "code", ("technical", "mathematics")
SEEDS = [11, 12, 13, 14]
VOCABULARY = 2048


def small_corpus(folder: Path, small: int) -> Corpus:
    """The corpus of one large and two small domains, of ``small`` tokens each."""
    whole = corpus_of({name: f"demo:{name}" for name in (LARGE, *SMALL)}, VOCABULARY, folder / "whole")
    tokenizer = Tokenizer.from_file(str(whole.path / "tokenizer.json"))
    sources = {LARGE: f"demo:{LARGE}"}
    for name in SMALL:
        source = folder / f"{name}.txt"
        source.write_text(tokenizer.decode(whole.train_tokens(name)[:small].tolist()), encoding="utf-8")
        sources[name] = str(source)
    return corpus_of(sources, VOCABULARY, folder / "small")


def recipe(match: bool, tokens: int, proxy_tokens: int, depth: int) -> Recipe:
    """The study's recipe."""
    return Recipe.model_validate(
        {
            "name": "repetition",
            "corpus": {"domains": {name: {"source": name} for name in (LARGE, *SMALL)}},
            "target": dict.fromkeys(SMALL, 0.5),
            "limits": {"max_epochs": 1000},
            "families": [{"name": "base"}],
            "model": {"depth": depth},
            "training": {
                **{"tokens": tokens, "context_length": 128, "batch_sequences": 8, "lr": 4e-3, "lr_exponent": 1.25},
                **{"warmup_share": 0.2, "seeds": SEEDS},
            },
            "study": {
                "mixture": {"depth": 2, "runs": 24, "tokens": proxy_tokens, "candidates": 2, "confirm_seeds": 2},
                "match_repetition": match,
            },
            "validation_windows": 64,
        }
    )


def lab_of(asked: Recipe, corpus: Corpus, store: Store, executor: LocalExecutor) -> Lab:
    """The lab of a recipe whose sizes are given."""
    sizes = {"mixture": asked.study.mixture.tokens, "anneal": 1, "ladder": 1, "target": asked.training.tokens}
    plan = Plan(
        budget=None, precision="fp32", workers=executor.n_workers, mixture_runs=asked.study.mixture.runs, tokens=sizes,
        seconds={}, flops={}, rates={},
    )  # fmt: skip
    return Lab(asked, corpus, store, executor, plan, say_progress, lambda text: print(f"\n{text}", flush=True))


def say_progress(stage: str, done: int, total: int, note: str) -> None:
    """The share of a stage that is done, and its note."""
    print(f"\r{stage}: {done / max(total, 1):.0%}, {note}".ljust(100), end="", flush=True)


def passes(spec: RunSpec, corpus: Corpus) -> dict[str, float]:
    """Passes over each small domain."""
    weights = spec.mixture[0].weights
    return {name: spec.tokens * weights.get(name, 0.0) / len(corpus.train_tokens(name)) for name in SMALL}


def paired(one: np.ndarray, other: np.ndarray) -> tuple[float, float, float]:
    """Mean of the differences by seed, with its 95 % interval."""
    differences = one - other
    half = stats.t.ppf(0.975, len(differences) - 1) * differences.std(ddof=1) / np.sqrt(len(differences))
    return float(differences.mean()), float(differences.mean() - half), float(differences.mean() + half)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=1_500_000, help="tokens of the target (default 1,500,000)")
    parser.add_argument("--proxy-tokens", type=int, default=200_000, help="tokens of a proxy (default 200,000)")
    parser.add_argument("--small", type=int, default=100_000, help="tokens of each small domain (default 100,000)")
    parser.add_argument("--depth", type=int, default=3, help="depth of the target (default 3)")
    parser.add_argument("--quick", action="store_true", help="a tenth of the tokens: only to see that it runs")
    parser.add_argument("--json", type=Path, help="file for all that was measured")
    options = parser.parse_args()
    scale = 10 if options.quick else 1
    tokens, proxy, small = options.tokens // scale, options.proxy_tokens // scale, options.small // scale
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        corpus = small_corpus(Path(scratch), small)
        store = Store(Path(scratch) / "store")
        with LocalExecutor(store, corpus.path) as executor:
            outcomes: dict[str, MixtureOutcome] = {}
            for name, match in (("plain", False), ("matched", True)):
                lab = lab_of(recipe(match, tokens, proxy, options.depth), corpus, store, executor)
                outcomes[name] = mixture_study(lab)
            mixtures = {"natural": outcomes["plain"].natural} | {
                n: o.candidates[0].weights for n, o in outcomes.items()
            }
            found = Found(
                mixture=mixtures["matched"], natural=mixtures["natural"], uniform=outcomes["plain"].uniform,
                annealing=Annealing(share=0.2, shape="linear"),
            )  # fmt: skip
            lab = replace(lab, recipe=recipe(False, tokens, proxy, options.depth))
            specs = {
                name: [target_spec(lab, found, weights, seed) for seed in SEEDS] for name, weights in mixtures.items()
            }
            results = run_all(executor, "target", [spec for group in specs.values() for spec in group], say_progress)
        repeated = {name: passes(group[0], corpus) for name, group in specs.items()}
    losses = {result.run: lab.target_loss(result) for result in results}
    measured = {name: np.array([losses[spec.id] for spec in group]) for name, group in specs.items()}
    rows: list[list[str]] = []
    facts: dict[str, Any] = {}
    for name, weights in mixtures.items():
        mean, low, high = paired(measured[name], measured["plain"])
        losses_by_seed, difference = measured[name].tolist(), [mean, low, high]
        facts[name] = {
            **{"weights": weights, "passes": repeated[name]},
            **{"losses": losses_by_seed, "difference": difference},
        }
        shown = ", ".join(f"{weights.get(domain, 0.0):.2f}" for domain in (LARGE, *SMALL))
        rows.append(
            [
                name,
                shown,
                ", ".join(f"{value:.1f}" for value in repeated[name].values()),
                f"{measured[name].mean():.4f}",
                "" if name == "plain" else f"{mean:+.4f} ({low:+.4f} to {high:+.4f})",
            ]
        )
    print()
    print(markdown(["mixture", f"weights ({', '.join((LARGE, *SMALL))})", "passes", "loss", "minus plain"], rows))
    print(f"{len(SEEDS)} seeds, {tokens:,} tokens, {time.monotonic() - begun:.0f} s")
    write_json(options.json, "repetition", tokens=tokens, proxy_tokens=proxy, small=small, mixtures=facts)


if __name__ == "__main__":
    main()
