"""Tokens per second of a fleet of small models on this machine, compared with other trainers and with the ceiling.

In one run on one machine:

- the ceiling: square matrix products, all cores at once, in fp32 and bf16, through each installed matrix library; the
  fastest is measured again before and after each turn, as the clock of a shared machine changes by the minute;
- ours: a study's executor with one worker per core, which trains runs on a corpus in a store, with its data order,
  optimizer, logging, checkpoints and evaluation; timed from the first step of the first run to the end of the last;
- peers, each one process with all cores, as its users start it: a plain PyTorch loop, the same compiled, Hugging Face
  ``Trainer`` with ``LlamaForCausalLM``, and litgpt's model in its pretraining loop, compiled (as that does) and not.
  Same shapes, initial weights, batches, optimizer and learning rates; final validation losses must agree with ours, in
  fp32 to a fifth of what two seeds of ours differ by, in bf16 to three times that, else the benchmark fails;
- the time between two runs on a worker: from one's last step to the next one's first, validation taken out.

Peers and ours take turns, so that a machine that is busy with other things shows as spread. Hugging Face and litgpt
get separate virtual environments in the cache folder, made in the first run (about a minute each).

Trade-offs: peers are timed without their first two steps (compilation, allocation), without evaluation and without
checkpoints, ours with everything. Runs are as short as the time allows, and validated on as many windows as keeps
evaluation at the share that it has in a study's longer runs (about 2 %). bf16 is tried on one sequence; where it is
over 3 times slower than fp32 (a processor that emulates it) nothing is measured in it. For peers the plain loop decides
that for all, since they share its kernels.

    python benchmarks/fleet.py --shapes 4x128 6x256 --json fleet.json
    python benchmarks/fleet.py --quick
    python benchmarks/fleet.py --profile 5
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import corpus_of, markdown, run_all, run_spec, shape, write_json
from peers import loops
from peers.processes import CORES, PEERS, PRODUCTS, Peer, product_rate

from armillary.corpus import Batch, Corpus, TokenOrder
from armillary.goodput import Event, read_events
from armillary.launch import LocalExecutor, Probe
from armillary.model import Transformer, export_hf, keep_freed_memory
from armillary.recipe import ArmillaryError, ModelShape, RunResult, RunSpec, Schedule, Validation
from armillary.store import Store
from armillary.train import build_optimizer, train_step

SEQUENCES = 8  # in a batch
WARMUP = 2  # steps of the peers that are not timed
SLOWER = 3.0  # a precision this many times slower is not measured further
# Of the difference between two seeds. Any seed would often agree to within the whole of it, a wrong one included.
AGREE = 0.2
ROUNDED = 3.0  # the same in bf16, where rounding leads two ways of computing one run about as far apart as two seeds
DOMAIN = "text"


@dataclass(frozen=True)
class Setting:
    """A shape to measure, and the runs to measure it with: ``runs`` for each worker in a turn."""

    layers: int
    width: int
    hidden: int
    vocab_size: int
    context_length: int
    steps: int
    runs: int
    windows: int

    @property
    def name(self) -> str:
        return f"{self.layers}x{self.width}"

    @property
    def shape(self) -> ModelShape:
        return shape(self.layers, self.width, self.hidden, self.vocab_size)

    def spec(self, corpus: str, seed: int, precision: str) -> RunSpec:
        return run_spec(
            self.shape,
            {DOMAIN: 1.0},
            lr=2e-3,
            corpus=corpus,
            context_length=self.context_length,
            batch_sequences=SEQUENCES,
            steps=self.steps,
            schedule=Schedule(warmup_steps=self.steps // 5, decay_steps=self.steps // 5),
            seed=seed,
            precision=precision,
            validation=Validation(windows=self.windows),
        )


SETTINGS = (
    Setting(4, 128, 352, 4096, 256, steps=80, runs=1, windows=24),
    Setting(6, 256, 704, 4096, 256, steps=60, runs=1, windows=24),
    Setting(2, 64, 192, 512, 128, steps=60, runs=8, windows=20),
)
GAP_SETTING = Setting(2, 64, 192, 512, 128, steps=10, runs=0, windows=4)


def synthetic_corpus(cache: Path, vocab_size: int) -> Corpus:
    """A corpus of invented words, each of which is followed by few others, with a tokenizer of ``vocab_size``."""
    text = cache / "words.jsonl"
    if not text.exists():
        random = np.random.default_rng(0)
        syllables = [a + b for a in "bcdfghjklmnprstvwz" for b in ("a", "e", "i", "o", "u", "an", "er", "is", "ol")]
        words = np.array(["".join(random.choice(syllables, n)) for n in random.integers(1, 5, 12_000)])
        followers = random.zipf(1.3, (len(words), 24)) % len(words)
        documents = np.empty((4000, 300), dtype=np.int64)
        documents[:, 0] = random.integers(len(words), size=4000)
        for i in range(1, 300):
            documents[:, i] = followers[documents[:, i - 1], random.integers(24, size=4000)]
        aside = text.with_suffix(".aside")
        aside.write_text("".join(json.dumps({"text": " ".join(words[d])}) + "\n" for d in documents), encoding="utf-8")
        aside.rename(text)
    return corpus_of({DOMAIN: str(text)}, vocab_size, cache / "corpora")


def peer_job(setting: Setting, corpus: Corpus, folder: Path) -> dict[str, Any]:
    """The run of seed 0 in the terms of the peers, with its files written into ``folder``."""
    spec = setting.spec(corpus.hash, 0, "fp32")
    order = TokenOrder.of(spec, corpus)
    batches = [order.batch(step).tokens for step in range(spec.steps)]
    np.save(folder / "batches.npy", np.stack(batches).astype(np.uint16))
    held_out = corpus.validation(DOMAIN, spec.context_length, spec.validation.windows)
    np.save(folder / "validation.npy", held_out.tokens.astype(np.uint16))
    model = Transformer(spec.model)
    model.init_weights(spec.seed)
    export_hf(
        model,
        folder / "weights",
        tokenizer_file=corpus.tokenizer_file,
        end_token=corpus.manifest.end_of_text,
        context_length=spec.context_length,
    )
    return {
        "shape": spec.model.model_dump(),
        "context_length": spec.context_length,
        "steps": spec.steps,
        "warmup": WARMUP,
        "sequences": SEQUENCES,
        "lr": [spec.lr(step) for step in range(spec.steps)],
        "optimizer": spec.optimizer.model_dump(),
        "batches": str(folder / "batches.npy"),
        "validation": str(folder / "validation.npy"),
        "weights": str(folder / "weights"),
    }


def our_turn(executor: LocalExecutor, specs: list[RunSpec]) -> tuple[float, list[RunResult], list[list[Event]]]:
    """Seconds from the first run's first step to the last one's end, the results, and the events of each run."""
    results = run_all(executor, "fleet", specs)
    events = [list(read_events(executor.store.run_folder(spec.id) / "events.jsonl")) for spec in specs]
    begin = min(event.time_s for run in events for event in run if event.kind == "start")
    end = max(event.time_s for run in events for event in run if event.kind == "end")
    return end - begin, results, events


def precisions(single: float, half: float) -> list[str]:
    """The precisions worth measuring, from the rates of fp32 and bf16 with one sequence."""
    return ["fp32", "bf16"] if single < SLOWER * half else ["fp32"]


def our_precision(executor: LocalExecutor, setting: Setting) -> tuple[str, float]:
    """The faster precision of ours on this machine, and how many times as long as fp32 one sequence takes in bf16."""

    def rates(sequences: int) -> list[float]:
        probes = [Probe(setting.shape, setting.context_length, sequences, p, 0.5) for p in ("fp32", "bf16")]
        return executor.measure(probes)

    single, half = rates(1)
    if len(precisions(single, half)) == 1:
        return "fp32", single / half
    full = rates(SEQUENCES)
    return "fp32" if full[0] >= full[1] else "bf16", single / half


def peer_precisions(plain: Peer, job: dict[str, Any]) -> tuple[list[str], float]:
    """The precisions worth measuring with the peers, and how many times as long one sequence takes in bf16."""
    single, half = (
        1 / plain.train(job | {"precision": precision, "steps": WARMUP + 1, "sequences": 1})["seconds"]
        for precision in ("fp32", "bf16")
    )
    return precisions(single, half), single / half


def measure(setting: Setting, cache: Path, rounds: int, product: tuple[str, str]) -> dict[str, Any]:
    """Turns of ours and of the peers at one shape, between measurements of the ceiling by ``product``."""
    corpus = synthetic_corpus(cache, setting.vocab_size)
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        store = Store(Path(scratch) / "store")
        executor = stack.enter_context(LocalExecutor(store, corpus.path))
        peers = [stack.enter_context(Peer(name, cache)) for name in PEERS]
        precision, slowdown = our_precision(executor, setting)
        job = peer_job(setting, corpus, Path(scratch))
        theirs, their_slowdown = peer_precisions(peers[0], job)
        ours: list[float] = []
        evaluation: list[float] = []
        losses: dict[int, float] = {}
        answers: dict[str, list[dict[str, Any]]] = {peer.name: [] for peer in peers}
        ceilings = {"ours": [], "peers": []}
        for turn in range(rounds):
            before = product_rate(*product, CORES, 1)
            say(f"{setting.name}: turn {turn + 1} of {rounds}")
            seeds = range(turn * setting.runs * CORES, (turn + 1) * setting.runs * CORES)
            specs = [setting.spec(corpus.hash, seed, precision) for seed in seeds]
            seconds, results, events = our_turn(executor, specs)
            ours.append(sum(spec.tokens for spec in specs) / seconds)
            losses |= {seed: result.loss[DOMAIN] for seed, result in zip(seeds, results, strict=True)}
            looks = sum(e.duration_s or 0.0 for run in events for e in run if e.kind == "validation")
            evaluation.append(looks / seconds / CORES)
            between = product_rate(*product, CORES, 1)
            for peer in peers:
                for kind in theirs:
                    answer = peer.train(job | {"precision": kind})
                    if answer:
                        timed = (setting.steps - WARMUP) * specs[0].batch_tokens
                        answers[peer.name].append(answer | {"tokens_per_s": timed / answer["seconds"]})
            ceilings["ours"].append((before + between) / 2)
            ceilings["peers"].append((between + product_rate(*product, CORES, 1)) / 2)
        exact = run_all(executor, "exact", [setting.spec(corpus.hash, 0, "fp32")])[0].loss[DOMAIN]
    return {
        "name": setting.name,
        "setting": asdict(setting),
        "ceilings_gflops": ceilings,
        "flops_per_token": setting.shape.train_flops_per_token(setting.context_length),
        "ours": {
            "precision": precision,
            "tokens_per_s": ours,
            "loss": losses[0],
            "exact": exact,
            "evaluation_share": evaluation,
        },
        "bf16_times_slower": {"ours": slowdown, "peers": their_slowdown},
        "losses_by_seed": losses,
        "seed_spread": statistics.mean(abs(a - b) for a, b in combinations(losses.values(), 2)),
        "peers": {peer.name: best_precision(answers[peer.name]) | {"problem": peer.problem} for peer in peers},
    }


def best_precision(answers: list[dict[str, Any]]) -> dict[str, Any]:
    """A peer's answers in its faster precision, as one."""
    if not answers:
        return {}
    fastest = max(answers, key=lambda answer: answer["tokens_per_s"])["precision"]
    kept = [answer for answer in answers if answer["precision"] == fastest]
    return {
        "precision": fastest,
        "tokens_per_s": [answer["tokens_per_s"] for answer in kept],
        "warmup_seconds": [answer["warmup_seconds"] for answer in kept],
        "loss": kept[0]["loss"],
        "exact": next((answer["loss"] for answer in answers if answer["precision"] == "fp32"), None),
    }


def gaps(cache: Path, runs: int) -> dict[str, Any]:
    """Seconds from a run's last step to the next one's first on the same worker, over a study of tiny runs."""
    corpus = synthetic_corpus(cache, GAP_SETTING.vocab_size)
    specs = [GAP_SETTING.spec(corpus.hash, seed, "fp32") for seed in range(runs)]
    with tempfile.TemporaryDirectory() as scratch:
        store = Store(Path(scratch))
        with LocalExecutor(store, corpus.path) as executor:
            # All workers are up before the first run: else it would not be known which run followed which.
            probe = Probe(GAP_SETTING.shape, GAP_SETTING.context_length, SEQUENCES, "fp32", 0.1)
            executor.measure([probe])
            _, _, events = our_turn(executor, specs)
    starts = sorted(event.time_s for run in events for event in run if event.kind == "start")
    looks = [sum(e.duration_s or 0.0 for e in run if e.kind == "validation") for run in events]
    # Evaluation is work of the run: what it took is added to the time of the last step.
    last = [max(e.time_s for e in run if e.kind == "progress") for run in events]
    ends = sorted(time_s + look for time_s, look in zip(last, looks, strict=True))
    # The runs that began before any had ended followed none; each later one took the place of the next to end.
    first = sum(start < ends[0] for start in starts)
    waits = [start - end for end, start in zip(ends, starts[first:], strict=False)]
    return {
        "runs": runs,
        "median_s": statistics.median(waits),
        "worst_s": max(waits),
        "evaluation_median_s": statistics.median(looks),
    }


def profile(setting: Setting, count: int, precision: str) -> dict[str, list[tuple[str, float]]]:
    """The ``count`` operators that cost most of a training step, as shares of its CPU time on one thread."""
    spec = setting.spec("none", 0, precision)
    job = {"shape": spec.model.model_dump(), "context_length": spec.context_length, "precision": precision}
    job |= {"lr": [spec.lr(0)], "optimizer": spec.optimizer.model_dump()}
    batch = torch.randint(setting.vocab_size, (SEQUENCES, spec.context_length + 1))
    ours = Transformer(spec.model)
    ours.init_weights(0)
    plain = loops.Plain(job["shape"], spec.context_length)
    our_optimizer, plain_optimizer = build_optimizer(ours, spec), loops.adamw(plain, job)
    steps = {
        "ours": lambda: train_step(ours, our_optimizer, spec, 0, Batch(batch)),
        "plain": lambda: loops.plain_step(plain, plain_optimizer, job, 0, batch),
    }
    torch.set_num_threads(1)
    keep_freed_memory()  # as a fleet's workers do
    shares = {}
    for name, step in steps.items():
        step()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as record:
            for _ in range(3):
                step()
        costs = sorted(record.key_averages(), key=lambda row: -row.self_cpu_time_total)
        total = sum(row.self_cpu_time_total for row in costs)
        shares[name] = [(row.key, row.self_cpu_time_total / total) for row in costs[:count]]
    return shares


def ceiling_table(products: dict[str, dict[str, float]]) -> str:
    """The matrix products."""
    columns = ["2048 x 2048 product, GFLOP/s", "one thread", f"one thread on each of {CORES} cores", "one process, all"]
    return markdown(columns, [[name, *(f"{rate:.0f}" for rate in rates.values())] for name, rates in products.items()])


def rate_table(rows: list[dict[str, Any]]) -> str:
    """Who trains how fast at which shape."""
    lines = []
    for row in rows:
        ours = statistics.median(row["ours"]["tokens_per_s"])
        for name, entry in {"ours": row["ours"], **row["peers"]}.items():
            if not entry.get("tokens_per_s"):
                lines.append([row["name"], name, "", entry["problem"].replace("|", "/"), "", "", "", ""])
                continue
            rates = entry["tokens_per_s"]
            rate = statistics.median(rates)
            peaks = row["ceilings_gflops"]["ours" if name == "ours" else "peers"]
            shares = [r * row["flops_per_token"] / peak / 1e9 for r, peak in zip(rates, peaks, strict=True)]
            ratios = [a / b for a, b in zip(row["ours"]["tokens_per_s"], rates, strict=True)]
            lines.append(
                [
                    row["name"],
                    name,
                    entry["precision"],
                    f"{rate:,.0f}",
                    f"{min(rates):,.0f} to {max(rates):,.0f}",
                    f"{statistics.median(shares):.0%} ({min(shares):.0%} to {max(shares):.0%})",
                    "" if name == "ours" else f"{ours / rate:.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
                    f"{entry['loss']:.4f}"
                    + ("" if name == "ours" else f" ({entry['loss'] - row['ours']['loss']:+.4f})"),
                ]
            )
    columns = [
        "model",
        "trainer",
        "precision",
        "tokens/s",
        "turns",
        "of the ceiling",
        "speedup of ours",
        "validation loss",
    ]
    return markdown(columns, lines)


def disagreements(rows: list[dict[str, Any]]) -> list[str]:
    """Peers whose final loss is further from ours than ``AGREE`` of what two seeds of ours are from each other.

    That holds in fp32, where they compute the same. If either computes in bf16, the limit is ``ROUNDED``.
    """
    found = []
    for row in rows:
        for name, entry in row["peers"].items():
            rounded = "bf16" in (entry.get("precision"), row["ours"]["precision"])
            for which, share in (("exact", AGREE), ("loss", ROUNDED if rounded else AGREE)):
                if entry.get(which) is None:
                    continue
                apart = abs(entry[which] - row["ours"][which])
                if not apart < share * row["seed_spread"]:
                    found.append(
                        f"{row['name']}: the loss of {name}{' in fp32' if which == 'exact' else ''} differs from ours "
                        f"by {apart:.4f}, two seeds of ours by {row['seed_spread']:.4f}; of the same run it should be "
                        f"below {share:g} of that"
                    )
    return found


def say(text: str) -> None:
    """A word on what is being done, with the time since the start."""
    print(f"{time.perf_counter() - BEGUN:5.0f} s  {text}", file=sys.stderr)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [setting.name for setting in SETTINGS]
    parser.add_argument("--shapes", nargs="+", choices=names, default=names, help="layers x width")
    parser.add_argument("--rounds", type=int, default=2, help="turns of each (default 2)")
    parser.add_argument("--quick", action="store_true", help="the smallest shape, one short turn, few runs for gaps")
    parser.add_argument("--cache", type=Path, default=user_cache(), help="folder of environments and corpora")
    parser.add_argument("--json", type=Path, help="file for all that was measured")
    parser.add_argument("--profile", type=int, metavar="N", help="only show the N largest costs of a training step")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="of --profile (default fp32)")
    options = parser.parse_args()
    settings = [setting for setting in SETTINGS if setting.name in options.shapes]
    if options.quick:
        settings = [replace(SETTINGS[-1], steps=20, runs=2)]
    if options.profile:
        found = {s.name: profile(s, options.profile, options.precision) for s in settings}
        for name, shares in found.items():
            rows = [[who, op, f"{share:.0%}"] for who, costs in shares.items() for op, share in costs]
            print(f"\n{name}\n\n" + markdown(["trainer", "operator", "share of CPU time"], rows))
        return write_json(options.json, "fleet-profile", shapes=found)
    options.cache.mkdir(parents=True, exist_ok=True)
    say("ceiling")
    layouts = {"one_thread": (1, 1), "thread_per_core": (CORES, 1), "all_threads": (1, CORES)}
    products = {
        " ".join(product): {name: product_rate(*product, *layout) for name, layout in layouts.items()}
        for product in PRODUCTS
    }
    fastest = max(PRODUCTS, key=lambda product: products[" ".join(product)]["thread_per_core"])
    rows = [measure(setting, options.cache, 1 if options.quick else options.rounds, fastest) for setting in settings]
    say("gaps between runs")
    waits = gaps(options.cache, 12 if options.quick else 40)
    print(ceiling_table(products))
    print(
        f"\nThe ceiling is {' '.join(fastest)} with a thread on each core, measured anew before and after each turn.\n"
    )
    print(rate_table(rows))
    for row in rows:
        print(
            f"\n{row['name']}: two seeds of ours differ by {row['seed_spread']:.4f} on average; evaluation takes "
            f"{statistics.median(row['ours']['evaluation_share']):.1%} of the time; one sequence in bf16 takes "
            f"{row['bf16_times_slower']['ours']:.1f} (peers: {row['bf16_times_slower']['peers']:.1f}) times as long."
        )
    print(
        f"\nBetween two runs on a worker ({waits['runs']} runs): median {1e3 * waits['median_s']:.0f} ms, worst "
        f"{1e3 * waits['worst_s']:.0f} ms; evaluation beside that {1e3 * waits['evaluation_median_s']:.0f} ms a run."
    )
    took = time.perf_counter() - BEGUN
    print(f"\n{took:.0f} s, torch {torch.__version__}, {CORES} cores.")
    about = {"seconds": took, "cores": CORES, "torch": torch.__version__}
    write_json(options.json, "fleet", **about, ceiling=products, ceiling_product=fastest, rows=rows, gaps=waits)
    wrong = disagreements(rows)
    if wrong:
        raise ArmillaryError("; ".join(wrong))


def user_cache() -> Path:
    """Where this user's caches lie."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "armillary-benchmarks"


if __name__ == "__main__":
    BEGUN = time.perf_counter()
    try:
        main()
    except ArmillaryError as error:
        sys.exit(f"error {error}")
