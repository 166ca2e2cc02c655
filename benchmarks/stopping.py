"""Early-stopping rules for runs, seeds and studies: their savings, and their effect on a law.

Real part: proxies of 2 layers and width 64 on demonstration text, 20 mixtures with one seed each and 4 mixtures with 8
seeds each, examined at 50 %, at 75 % (where their decay starts) and at the end, window by window. Simulated part:
studies with a known truth (a law fitted to the real runs) and noise drawn from the real differences between seeds.

Every rule is checked for three faults: biased estimates (in standard deviations between seeds), intervals with less
than their nominal coverage, and no more information per token than without the rule.

Trade-off: one size, three domains and short runs, so that it takes minutes. Biases of the size found here need no
larger study; a rule that passed would have to be tried on one.

    python benchmarks/stopping.py [--json FILE] [--repeats 120] [--workers 2]
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # one process per core

import numpy as np
import pyarrow.parquet as pq
import torch
from common import corpus_of, markdown, run_all, run_spec, write_json
from scipy import stats

from armillary.launch import LocalExecutor
from armillary.laws import Choice, MixtureLaw, best_of, simplex_design
from armillary.model import load_weights
from armillary.recipe import Family, Schedule, Validation
from armillary.store import Store

DOMAINS = ("code", "technical", "mathematics")
TARGET = np.array([0.0, 0.5, 0.5])
NATURAL = np.array([0.6, 0.3, 0.1])
STEPS, WINDOWS, CONTEXT, BATCH = 100, 32, 128, 8
MIXTURES, SEEDS = 20, 8
# A study of 24 mixtures that looks at itself after these; the 8 seeds are looked at one by one.
LOOKS = (12, 16, 20, 24)
MOST_SEEDS, FIRST_SEEDS = 8, 3


@dataclass(frozen=True)
class Runs:
    """What the real runs say; r runs, the first ``MIXTURES`` the design with a seed each, then ``SEEDS`` per mixture.

    Attributes:
        mixtures: [r, 3].
        losses: [r, 3 looks, 3 domains] validation losses at 50 %, 75 % and the end.
        windows: [r, 3 domains, windows] losses at the end.
    """

    mixtures: np.ndarray
    losses: np.ndarray
    windows: np.ndarray

    @property
    def repeated(self) -> np.ndarray:
        """Target losses [mixtures, seeds, looks] of the mixtures that were trained with several seeds."""
        return (self.losses[MIXTURES:] @ TARGET).reshape(-1, SEEDS, 3)

    @property
    def noise(self) -> np.ndarray:
        """Log losses of the repeated runs less their mixture's mean, [n, 3 domains], scaled to be unbiased."""
        logs = np.log(self.losses[MIXTURES:, -1]).reshape(-1, SEEDS, 3)
        return ((logs - logs.mean(1, keepdims=True)) * np.sqrt(SEEDS / (SEEDS - 1))).reshape(-1, 3)

    @property
    def seed_std(self) -> float:
        """Standard deviation of the target loss at the end between seeds of one mixture."""
        return float(np.sqrt(self.repeated[..., -1].var(1, ddof=1).mean()))


@dataclass(frozen=True)
class Row:
    """A rule's record: ``bias`` in standard deviations between seeds with its standard error; ``saved`` of the compute.

    ``worth`` is the knowledge per token (one over variance, squared width or regret), 1 for doing without the rule;
    ``worth_error`` is its standard error where studies were simulated.
    """

    rule: str
    saved: float
    bias: float
    bias_error: float
    coverage: float | None
    worth: float
    worth_error: float | None = None


def train(folder: Path, workers: int) -> Runs:
    """Carry out the real runs as a study would."""
    corpus = corpus_of({name: f"demo:{name}" for name in DOMAINS}, 1024, folder / "corpus")
    shape = Family().shape(2, corpus.vocab_size)
    design = simplex_design(MIXTURES, [0] * 3, [1] * 3, centre=NATURAL, seed=0)
    # The natural and the uniform mixture, a mixture without code, and one with much of it.
    again = np.array([NATURAL, [1 / 3] * 3, [0.0, 0.5, 0.5], [0.9, 0.05, 0.05]])
    # A different seed for each mixture: the luck of a shared seed would look like a bias.
    wanted = [(row, 100 + number) for number, row in enumerate(design)]
    wanted += [(row, seed) for row in again for seed in range(SEEDS)]
    specs = [
        run_spec(
            shape,
            dict(zip(DOMAINS, row.tolist(), strict=True)),
            lr=4e-3,
            corpus=corpus.hash,
            context_length=CONTEXT,
            batch_sequences=BATCH,
            steps=STEPS,
            schedule=Schedule(kind="wsd", warmup_steps=STEPS // 5, decay_steps=STEPS // 4),
            seed=seed,
            validation=Validation(every=STEPS // 4, windows=WINDOWS),
        )
        for row, seed in wanted
    ]
    store = Store(folder / "store")
    with LocalExecutor(store, corpus.path, workers) as executor:
        run_all(
            executor,
            "stopping",
            specs,
            lambda stage, done, total, note: print(f"\r{stage}: {note}", end="", file=sys.stderr),
        )
    print(file=sys.stderr)
    losses, windows = [], []
    for spec in specs:
        rows = pq.read_table(store.run_folder(spec.id) / "metrics.parquet").to_pylist()
        looks = [rows[STEPS * share // 100 - 1] for share in (50, 75, 100)]
        losses.append([[row[f"validation/{name}/loss"] for name in DOMAINS] for row in looks])
        model = load_weights(store.run_folder(spec.id) / "model.safetensors", shape)
        with torch.no_grad():
            windows.append(
                [
                    [model.loss(torch.from_numpy(window[None]))[1].item() / CONTEXT for window in held_out.tokens]
                    for held_out in (corpus.validation(name, CONTEXT, WINDOWS) for name in DOMAINS)
                ]
            )
    return Runs(np.array([row for row, _ in wanted]), np.array(losses), np.array(windows))


def extrapolation(runs: Runs) -> list[Row]:
    """A run stops before its end, which is told from its loss so far and what sibling runs gained from there on.

    What is gained is learned from the whole design, with the loss so far, or with the mixture, as regressors; the bias
    is that of the worst of the four mixtures with repeats, whose mean over seeds tells it from noise.
    """
    rows = []
    design = runs.losses[:MIXTURES] @ TARGET
    for look, share in ((0, 0.5), (1, 0.75)):
        early, end = runs.repeated[..., look], runs.repeated[..., -1]
        ones, mixtures = np.ones(MIXTURES), runs.mixtures[:MIXTURES, 1:]
        again = runs.mixtures[MIXTURES:].reshape(*end.shape, 3)[..., 1:]
        regressors = {
            "the mean gain of siblings": (ones[:, None], np.ones((*end.shape, 1))),
            "gain by the loss so far": (
                np.column_stack([ones, design[:, look]]),
                np.stack([np.ones(end.shape), early], -1),
            ),
            "gain by the mixture": (
                np.column_stack([ones, mixtures]),
                np.concatenate([np.ones((*end.shape, 1)), again], -1),
            ),
        }
        for name, (known, asked) in regressors.items():
            coefficients = np.linalg.lstsq(known, design[:, look] - design[:, -1], rcond=None)[0]
            wrong = early - asked @ coefficients - end
            means, errors = wrong.mean(1), wrong.std(1, ddof=1) / np.sqrt(SEEDS)
            worst = np.abs(means).argmax()
            # What the rule believes of itself: the spread of its errors over the siblings that it was fitted to.
            residual = design[:, look] - known @ coefficients - design[:, -1]
            freedom = MIXTURES - known.shape[1]
            half = stats.t.isf(0.05, freedom) * np.sqrt((residual**2).sum() / freedom)
            variance = runs.seed_std**2 + (wrong**2).mean()
            rows.append(
                Row(
                    f"(i) stop at {share:.0%}, {name}",
                    1 - share,
                    float(means[worst] / runs.seed_std),
                    float(errors[worst] / runs.seed_std),
                    float((np.abs(wrong) <= half).mean()),
                    float(runs.seed_std**2 / variance / share),
                )
            )
    return rows


def validation(runs: Runs) -> list[Row]:
    """Fewer validation windows: the same for every run, or as many as each run's own standard error asks for."""
    cost = len(DOMAINS) * WINDOWS * CONTEXT / 3
    total = STEPS * BATCH * CONTEXT + cost
    full = runs.windows.mean(-1) @ TARGET
    standard_error = runs.windows.std(-1, ddof=1) / np.sqrt(WINDOWS)
    counts: dict[str, np.ndarray] = {
        f"(iv) {n} of {WINDOWS} windows in every run": np.full(len(full), n) for n in (8, 16)
    }
    # Windows until the standard error of the target is what 16 windows give on average.
    of_target = np.sqrt((standard_error**2) @ TARGET**2)
    counts["(iv) windows until the standard error is small enough"] = np.clip(
        np.ceil(WINDOWS / 2 * (of_target / of_target.mean()) ** 2), 2, WINDOWS
    ).astype(int)
    rows = []
    for name, count in counts.items():
        short = np.array([runs.windows[r, :, :n].mean(-1) @ TARGET for r, n in enumerate(count)])
        # What all runs share moves the level alone; a law is fitted to the differences.
        wrong = short - full - (short - full).mean()
        saved = cost * (1 - count.mean() / WINDOWS) / total
        by_mixture = wrong[MIXTURES:].reshape(-1, SEEDS)
        means, errors = by_mixture.mean(1), by_mixture.std(1, ddof=1) / np.sqrt(SEEDS)
        worst = np.abs(means).argmax()
        worth = runs.seed_std**2 / (runs.seed_std**2 + wrong.var()) / (1 - saved)
        rows.append(
            Row(
                name,
                float(saved),
                float(means[worst] / runs.seed_std),
                float(errors[worst] / runs.seed_std),
                None,
                float(worth),
            )
        )
    return rows


def replicates(runs: Runs, factor: float, studies: int = 4000) -> list[Row]:
    """Seeds are added to four arms until the best one is known from the reference (``best_of``, as studies choose).

    In half of the studies no arm differs, in half one is better by one standard deviation; noise is drawn from the real
    residuals of arms and seeds, and scaled by up to ``factor`` either way, since not knowing it is why one would adapt.
    ``saved`` is against ``MOST_SEEDS`` seeds; ``worth`` compares the mean squared width with that of a fixed
    number of seeds, the same on average.
    """
    rng = np.random.default_rng(1)
    ends = runs.repeated[..., -1]
    noise = ends - ends.mean(0) - ends.mean(1, keepdims=True) + ends.mean()
    noise = noise.ravel() / noise.std()
    looks = range(FIRST_SEEDS, MOST_SEEDS + 1)
    names = ["natural", *"abc"]
    scales = factor ** rng.uniform(-1, 1, studies)
    choices: list[list[Choice]] = []
    truths = []
    for number, scale in enumerate(scales):
        truth = dict.fromkeys(names, 0.0) | ({"a": -scale} if number % 2 else {})
        samples = {name: truth[name] + scale * rng.choice(noise, MOST_SEEDS) for name in names}
        choices.append([best_of({k: v[:n] for k, v in samples.items()}, "natural") for n in looks])
        truths.append(truth)
    halves = np.array([[float(c.difference.high - c.difference.mean) for c in series] for series in choices])
    wanted = np.sqrt(halves[:, 0].min() * halves[:, -1].max())

    def first(known: np.ndarray) -> np.ndarray:
        """The first look at which it is known [studies, looks], else the last."""
        return np.where(known.any(1), known.argmax(1), len(looks) - 1)

    # Stein 1945: how many more follows from the spread of the first seeds, which also gives the interval.
    stein = np.ceil(FIRST_SEEDS * (halves[:, 0] / wanted) ** 2).clip(FIRST_SEEDS, MOST_SEEDS).astype(int) - FIRST_SEEDS
    taken = {f"(ii) always {n} seeds": np.full(studies, n - FIRST_SEEDS) for n in (FIRST_SEEDS, 5, MOST_SEEDS)}
    taken["(ii) seeds until an arm is significantly better"] = first(
        np.array([[c.significant for c in series] for series in choices])
    )
    taken["(ii) seeds until the interval is narrow"] = first(halves <= wanted)
    taken[f"(ii) seeds by the spread of the first {FIRST_SEEDS} (Stein)"] = stein
    known = f", noise known within a factor of {factor:g}"
    rows = []
    for name, at in taken.items():
        seeds = at + FIRST_SEEDS
        picked = [series[i] for series, i in zip(choices, at, strict=True)]
        half = halves[:, 0] * np.sqrt(FIRST_SEEDS / seeds) if "Stein" in name else halves[np.arange(studies), at]
        wrong = np.array([c.difference.mean - t[c.best] for c, t in zip(picked, truths, strict=True)])
        fixed = np.exp(np.interp(seeds.mean(), looks, np.log((halves**2).mean(0))))
        rows.append(
            Row(
                name + known,
                float(1 - seeds.mean() / MOST_SEEDS),
                float((wrong / scales).mean()),
                float((wrong / scales).std() / np.sqrt(studies)),
                float((np.abs(wrong) <= half).mean()),
                float(fixed / (half**2).mean()),
            )
        )
    return rows


@dataclass(frozen=True)
class Answer:
    """What one simulated study says after ``runs`` runs, in standard deviations between seeds.

    ``wrong`` is the predicted less the true target at the mixture it would take, ``regret`` how much that is worse than
    the best mixture; ``covered`` whether a new run there lies in its interval; ``half`` the width of that.
    """

    runs: float
    wrong: float
    regret: float
    covered: bool
    half: float
    at: tuple[float, ...]


def simulated(runs: Runs, seed: int) -> dict[str, Answer]:
    """One study with a known truth: the answers after each look, and after half of the runs were dropped at 50 %."""
    rng = np.random.default_rng(seed)
    real, noise = slice(0, MIXTURES), runs.noise
    truth = MixtureLaw(models=("effective-data",), bootstraps=2).fit(runs.mixtures[real], runs.losses[real, -1])
    ticks = np.linspace(0, 1, 16)
    grid = np.array([[a, b, 1 - a - b] for a in ticks for b in ticks if a + b <= 1 + 1e-9]).clip(0, 1)
    design = simplex_design(LOOKS[-1], [0] * 3, [1] * 3, centre=NATURAL, seed=seed)
    true = truth.predict(grid).mean @ TARGET
    drawn = noise[rng.integers(len(noise), size=LOOKS[-1])]
    losses = truth.predict(design).mean * np.exp(drawn)

    def answer(kept: np.ndarray, cost: float) -> Answer:
        law = MixtureLaw(bootstraps=40, seed=seed).fit(design[kept], losses[kept])
        predicted = law.target(grid, TARGET)
        best = int(predicted.mean.argmin())
        new = truth.predict(grid[[best]]).mean[0] * np.exp(noise[rng.integers(len(noise))]) @ TARGET
        return Answer(
            cost,
            float(predicted.mean[best] - true[best]) / runs.seed_std,
            float(true[best] - true.min()) / runs.seed_std,
            bool(predicted.low[best] <= new <= predicted.high[best]),
            float(predicted.high[best] - predicted.low[best]) / 2 / runs.seed_std,
            tuple(grid[best]),
        )

    answers = {f"{look}": answer(np.arange(look), look) for look in LOOKS}
    # At half of the run the order of the runs is nearly that of their ends: the real runs' correlation decides.
    ends, halves = runs.losses[real, -1] @ TARGET, runs.losses[real, 0] @ TARGET
    slope, offset, *_ = stats.linregress(ends, halves)
    rest = (halves - offset - slope * ends).std(ddof=2)
    early = offset + slope * (losses @ TARGET) + rest * rng.standard_normal(LOOKS[-1])
    survivors = np.sort(early.argsort()[: LOOKS[-1] // 2])
    answers["halved"] = answer(survivors, 0.75 * LOOKS[-1])
    return answers


def studies(runs: Runs, repeats: int, workers: int) -> list[Row]:
    """Mixture studies that stop when they seem to know enough, against those of a size fixed beforehand.

    ``worth`` compares the regret of the mixture taken with that of studies of a fixed size, the same on average.
    """
    with ProcessPoolExecutor(workers) as pool:
        found = list(pool.map(partial(simulated, runs), range(repeats), chunksize=4))
    wanted = float(np.median([answers[str(LOOKS[1])].half for answers in found]))

    def when(stop) -> list[Answer]:  # type: ignore[no-untyped-def]
        """The answer at the first look at which ``stop(before, now)``, else at the last."""
        taken = []
        for answers in found:
            series = [answers[str(look)] for look in LOOKS]
            pairs = zip([None, *series[:-1]], series, strict=True)
            taken.append(next((now for before, now in pairs if stop(before, now)), series[-1]))
        return taken

    def stays(before: Answer | None, now: Answer) -> bool:
        return before is not None and np.abs(np.subtract(before.at, now.at)).sum() / 2 < 0.1

    rules = {f"(iii) always {look} mixtures": [answers[str(look)] for answers in found] for look in LOOKS}
    rules["(iii) mixtures until the interval is narrow"] = when(lambda before, now: now.half <= wanted)
    rules["(iii) mixtures until the optimum stays"] = when(stays)
    rules["half of the runs dropped at 50 % (halving)"] = [answers["halved"] for answers in found]
    regret = {name: np.array([a.regret for a in answers]) for name, answers in rules.items()}
    costs = {name: np.array([a.runs for a in answers]) for name, answers in rules.items()}
    fixed = np.array([regret[f"(iii) always {look} mixtures"] for look in LOOKS])

    def worth(name: str, picked: np.ndarray) -> float:
        """Regret of a fixed size over the rule's, among the studies picked."""
        same = np.interp(costs[name][picked].mean(), LOOKS, np.log(fixed[:, picked].mean(1)))
        return float(np.exp(same) / regret[name][picked].mean())

    everything, rng = np.arange(repeats), np.random.default_rng(2)
    resampled = [rng.integers(repeats, size=repeats) for _ in range(200)]
    rows = []
    for name, answers in rules.items():
        wrong = np.array([a.wrong for a in answers])
        rows.append(
            Row(
                name,
                float(1 - costs[name].mean() / LOOKS[-1]),
                float(wrong.mean()),
                float(wrong.std() / np.sqrt(repeats)),
                float(np.mean([a.covered for a in answers])),
                worth(name, everything),
                float(np.std([worth(name, picked) for picked in resampled])),
            )
        )
    return rows


def main() -> None:
    """Train, simulate, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="file to write the table to, as JSON")
    parser.add_argument("--repeats", type=int, default=120, help="simulated mixture studies")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args()
    torch.set_num_threads(1)
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        runs = train(Path(folder), options.workers)
    trained = time.perf_counter()
    rows = extrapolation(runs) + replicates(runs, 1.2) + replicates(runs, 3.0)
    rows += studies(runs, options.repeats, options.workers) + validation(runs)
    lines = []
    for row in rows:
        coverage = "" if row.coverage is None else f"{row.coverage:.0%}"
        bias = f"{row.bias:+.2f} ± {row.bias_error:.2f}"
        error = "" if row.worth_error is None else f" ± {row.worth_error:.2f}"
        lines.append([row.rule, f"{row.saved:.0%}", bias, coverage, f"{row.worth:.2f}{error}"])
    columns = ["rule", "compute saved", "bias (seed std)", "coverage of 90 %", "knowledge per token"]
    print(markdown(columns, lines))
    seconds = {"runs": trained - begun, "simulation": time.perf_counter() - trained}
    by_mixture = runs.repeated[..., -1].std(1, ddof=1)
    result = {
        "seconds": seconds,
        "runs": len(runs.mixtures),
        "seed_std": runs.seed_std,
        "seed_std_by_mixture": by_mixture.tolist(),
        "rows": [asdict(row) for row in rows],
    }
    write_json(options.json, "stopping", **result)
    print(json.dumps({"benchmark": "stopping", **result}))


if __name__ == "__main__":
    main()
