"""A corpus and an executor without text and training: all paths of the studies in milliseconds, with any failure."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from armillary.launch import Failure, settled
from armillary.laws import Prediction
from armillary.recipe import Recipe, RunResult, RunSpec
from armillary.store import Store
from armillary.study import (
    Lab,
    Plan,
    anneal_study,
    found_recipe,
    judge,
    ladder_study,
    mixture_study,
    predict,
    train_target,
)

RECIPE = {
    "name": "fake",
    "corpus": {"domains": {name: {"source": name} for name in ("a", "b", "c")}},
    "target": {"a": 0.7, "b": 0.3},
    "limits": {"max_epochs": 100},
    "families": [{"name": "base", "width_per_layer": 8, "head_dim": 8}, {"name": "wide", "width_per_layer": 16}],
    "model": {"depth": 3},
    "training": {"tokens": 60_000, "context_length": 16, "batch_sequences": 8, "seeds": [1, 2, 3], "precision": "fp32"},
    "study": {
        "mixture": {"depth": 1, "runs": 12, "tokens": 20_000, "candidates": 2, "confirm_seeds": 2},
        "anneal": {"depth": 1, "tokens": 20_000, "shares": [0.1, 0.2, 0.4], "shapes": ["linear"], "sharpen": [1, 2]},
        "ladder": {"depths": [1, 2], "tokens": 40_000, "fractions": [0.3, 0.6, 1.0], "families": ["base", "wide"]},
    },
    "validation_windows": 4,
}


def make_recipe(**changes: Any) -> Recipe:
    """The recipe with the fields at dotted places (``__`` for a dot) replaced."""
    document: dict[str, Any] = Recipe.model_validate(RECIPE).model_dump(mode="json")
    for place, value in changes.items():
        part = document
        *above, last = place.split("__")
        for name in above:
            part = part.setdefault(name, {})
        part[last] = value
    return Recipe.model_validate(document)


class FakeCorpus:
    """Names and numbers of tokens, and no token."""

    domains = training_domains = ("a", "b", "c")
    vocab_size = 300

    def __init__(self, natural: dict[str, float] | None = None, tokens: int = 1_000_000, hash: str = "c" * 16) -> None:
        self._natural = natural or {"a": 0.2, "b": 0.5, "c": 0.3}
        self._tokens = tokens
        self.hash = hash

    def natural_mixture(self) -> dict[str, float]:
        return dict(self._natural)

    def train_tokens(self, domain: str) -> np.ndarray:
        return np.broadcast_to(np.uint16(0), (round(self._tokens * self._natural[domain]),))

    def windows(self, domain: str, context_length: int) -> int:
        return len(self.train_tokens(domain)) // context_length


class FakeExecutor:
    """Gives each run the loss that ``loss_of`` has for it, unless ``lose`` names the status that it ends with."""

    n_workers, device = 1, "fake"

    def __init__(self, store: Store, lose: Callable[[RunSpec], str | None] | None = None) -> None:
        self.store = store
        self.lose = lose or (lambda spec: None)
        self.trained: list[str] = []

    def run(self, study: str, jobs: Sequence[Any], progress: Any) -> dict[str, RunResult | Failure]:
        self.store.add(study, [job.spec for job in jobs])
        outcomes: dict[str, RunResult | Failure] = {}
        for job in jobs:
            run = job.spec.id
            known = settled(self.store, run)
            if known is not None:
                outcomes[run] = known
                continue
            self.store.mark_running(run)
            self.trained.append(run)
            status = self.lose(job.spec)
            if status is None:
                outcomes[run] = result_of(job.spec)
                self.store.mark_done(outcomes[run])
            else:
                self.store.mark_failed(run, status, f"run {run}: the disk is full")
                outcomes[run] = Failure(run, status, f"run {run}: the disk is full")
        return outcomes

    def measure(self, probes: Sequence[Any]) -> list[float]:
        return [1e9 / probe.shape.parameters for probe in probes]

    def __enter__(self) -> FakeExecutor:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def result_of(spec: RunSpec) -> RunResult:
    """What the run would measure: a law of size, tokens and the mixture of each phase, with noise by its id."""
    noise = np.random.default_rng(int(hashlib.sha256(spec.id.encode()).hexdigest()[:8], 16))
    base = (
        1.5 + 20 * spec.model.parameters**-0.3 + 40 * spec.tokens**-0.4 + 0.01 * abs(math.log(spec.optimizer.lr / 4e-3))
    )
    ends = [*(phase.start_step for phase in spec.mixture[1:]), spec.steps]
    shares = dict.fromkeys("abc", 0.0)
    for phase, end in zip(spec.mixture, ends, strict=True):
        for domain, weight in phase.weights.items():
            shares[domain] += weight * (end - phase.start_step) / spec.steps
    pull = 0.1 * (spec.schedule.decay_steps / spec.steps - 0.25) ** 2
    loss = {
        domain: base + pull + 0.3 * math.exp(-3 * share) + 0.002 * float(noise.standard_normal())
        for domain, share in shares.items()
    }
    bits = {domain: value / 3 for domain, value in loss.items()}
    return RunResult(spec.id, loss, bits, base, spec.tokens, spec.flops, dict.fromkeys("abc", 1.0), 1.0)


class QuickLaw:
    """Least squares on the logarithms of the losses, in the place of ``MixtureLaw``."""

    def __init__(self, seed: int) -> None:
        pass

    def fit(self, mixtures: np.ndarray, losses: np.ndarray) -> QuickLaw:
        self._coefficients = np.linalg.lstsq(mixtures, np.log(losses), rcond=None)[0]
        columns = np.ones(losses.shape[1])
        self.chosen_ = {"linear": columns}
        predicted = np.exp(mixtures @ self._coefficients)
        self.held_out_ = SimpleNamespace(predicted=predicted, spearman=columns, rmse=columns)
        return self

    def target(self, mixtures: np.ndarray, weights: np.ndarray) -> Prediction:
        mean = np.exp(mixtures @ self._coefficients) @ weights
        return Prediction(mean, mean - 0.1, mean + 0.1)


def quick_optima(law: QuickLaw, weights: np.ndarray, *, support: np.ndarray, candidates: int, **_: Any) -> list[Any]:
    """The mixtures of the design that the law likes best, in the place of ``optimise_mixture``."""
    order = law.target(support, weights).mean.argsort()
    return [SimpleNamespace(weights=support[i]) for i in order[:candidates]]


def make_plan(recipe: Recipe, **changes: Any) -> Plan:
    """The sizes that the recipe's sections name."""
    study = recipe.study
    tokens = {
        "mixture": study.mixture.tokens,
        "anneal": study.anneal.tokens,
        "ladder": study.ladder.tokens,
        "target": recipe.training.tokens or study.ladder.tokens,
        **({} if study.lr is None else {"lr": study.lr.tokens}),
    }
    sizes = {"precision": "fp32", "workers": 1, "mixture_runs": study.mixture.runs, "tokens": tokens}
    return Plan(**{"budget": None, **sizes, "seconds": {}, "flops": {}, "rates": {}, **changes})


def along(lab: Lab) -> dict[str, Any]:
    """What every stage found, to the verdict, for a lab."""
    mixture = mixture_study(lab)
    anneal = anneal_study(lab, mixture.found, mixture.annealing)
    found = found_recipe(mixture, anneal)
    ladder = ladder_study(lab, found.mixture, found.annealing)
    prediction = predict(lab, found, mixture, ladder)
    target = train_target(lab, found)
    verdict = judge(lab, found)
    return {
        "mixture": mixture,
        "anneal": anneal,
        "ladder": ladder,
        "prediction": prediction,
        "target": target,
        "verdict": verdict,
    }


def make_lab(
    folder: Path,
    recipe: Recipe | None = None,
    corpus: Any = None,
    lose: Callable[[RunSpec], str | None] | None = None,
) -> Lab:
    """A lab over a store in ``folder``; what it says is in ``lab.said``."""
    recipe = recipe or make_recipe()
    store, said = Store(folder, "sqlite://"), []
    lab = Lab(
        recipe,
        corpus or FakeCorpus(),
        store,
        FakeExecutor(store, lose),  # type: ignore[arg-type]
        make_plan(recipe),
        lambda *_: None,
        said.append,
    )
    object.__setattr__(lab, "said", said)
    return lab
