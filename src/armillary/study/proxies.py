"""The proxies of the mixture study: the mixtures of the design, the runs on them, and their results.

The mixture study and the statement on its power train the same runs, so what one has trained the other uses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from armillary.launch import Job
from armillary.recipe import RunSpec, UsageError, counted
from armillary.study.lab import FailedRun, Lab, RunSize, Trained
from armillary.study.points import OnePhase, Points, TwoPhases

_CONFIRM_SEED = 1000
# A law needs this many different mixtures; two mixtures count as one if they differ by less than this share.
MIN_MIXTURES = 8
_SAME = 1e-3
NATURAL, UNIFORM = "natural", "uniform"


@dataclass(frozen=True)
class Design:
    """The planned proxies.

    ``mixtures`` [n, k] are the ``points`` trained first; ``reserve`` more follow after a first fit. ``plain`` and
    ``references`` hold those of the natural and the uniform mixture [k], as they are and moved into the limits.
    ``earlier``: whether an earlier version concluded the study, which is then kept as it is.
    """

    points: Points
    mixtures: np.ndarray
    reserve: int
    size: RunSize
    plain: dict[str, np.ndarray]
    references: dict[str, np.ndarray]
    earlier: bool

    @classmethod
    def of(cls, lab: Lab) -> Design:
        """The design of a recipe.

        Raises:
            UsageError: the limits leave no mixture, or too few different ones for a law.
        """
        allowed = lab.allowed()
        study = lab.recipe.study.mixture
        points: Points = OnePhase(lab) if study.phases == 1 else TwoPhases(lab)
        mixtures = {
            NATURAL: lab.vector(lab.corpus.natural_mixture()),
            UNIFORM: np.full(len(allowed.domains), 1 / len(allowed.domains)),
        }
        plain = {name: points.plain(mixture) for name, mixture in mixtures.items()}
        references = {name: points.plain(allowed.within(mixture)) for name, mixture in mixtures.items()}
        every = points.design(lab.plan.mixture_runs, allowed.within(mixtures[NATURAL]), study.seed)
        _refuse_few(every, lab)
        steps = lab.steps(lab.plan.tokens["mixture"])
        size = RunSize(
            lab.shape(lab.recipe.model.family, study.depth),
            steps,
            round(lab.recipe.training.warmup_share * steps),
            text_share=lab.matched(steps),
        )
        reserve = round(study.reserve * len(every))
        earlier = _concluded_earlier(lab, every, size, points)
        if earlier:
            size, reserve = replace(size, text_share=1.0), 0
        while reserve and different(every[: len(every) - reserve]) < MIN_MIXTURES:
            reserve -= 1
        return cls(points, every[: len(every) - reserve], reserve, size, plain, references, earlier)

    def proxy(self, lab: Lab, mixture: np.ndarray) -> RunSpec:
        """The proxy of the design on ``mixture`` [k]."""
        return self.points.run(self.size, mixture, lab.recipe.study.mixture.seed)

    def confirmation(self, lab: Lab, mixtures: Mapping[str, np.ndarray]) -> dict[str, list[RunSpec]]:
        """Proxies with new seeds on each of ``mixtures``, by its name."""
        seeds = [_CONFIRM_SEED + i for i in range(lab.recipe.study.mixture.confirm_seeds)]
        return {name: [self.points.run(self.size, row, seed) for seed in seeds] for name, row in mixtures.items()}


def train_confirmation(lab: Lab, confirm: dict[str, list[RunSpec]]) -> Trained:
    """Train these runs; two arms can have the same mixture, whose runs then belong to the first arm."""
    owners = {spec.id: name for name, group in reversed(confirm.items()) for spec in group}
    return lab.train("mixture-confirm", [Job(spec) for group in confirm.values() for spec in group], owners)


class Proxies:
    """The proxies of the study with a result: ``mixtures`` [n, k], ``losses`` [n, v] and ``runs`` in one order."""

    def __init__(self, lab: Lab, mixtures: Sequence[np.ndarray], specs: Sequence[RunSpec]) -> None:
        self._lab = lab
        self.mixtures = np.empty((0, len(mixtures[0])))
        self.losses = np.empty((0, len(lab.corpus.domains)))
        self.runs: list[str] = []
        self.failed: list[FailedRun] = []
        self._trained = 0
        self.train(mixtures, specs)

    def train(self, mixtures: Sequence[np.ndarray], specs: Sequence[RunSpec]) -> None:
        """Train one more run on each of ``mixtures``; those with a result are added."""
        arms = {spec.id: f"mixture {number}" for number, spec in enumerate(specs, self._trained + 1)}
        self._trained += len(specs)
        trained = self._lab.train("mixture", [Job(spec) for spec in specs], arms)
        self.failed += trained.failed
        for mixture, spec in zip(mixtures, specs, strict=True):
            if spec.id in trained.results and spec.id not in self.runs:
                loss = trained.results[spec.id].loss
                self.mixtures = np.vstack([self.mixtures, mixture])
                self.losses = np.vstack([self.losses, [loss[domain] for domain in self._lab.corpus.domains]])
                self.runs.append(spec.id)


def _concluded_earlier(lab: Lab, mixtures: np.ndarray, size: RunSize, points: Points) -> bool:
    """Whether a version without reserve and matched repetition concluded the study, and the recipe sets neither.

    ``mixtures`` are those of all planned proxies, and ``size`` their size. Such a study stays as it is: its runs, and
    those that follow from it, would otherwise be trained again.
    """
    recipe, study = lab.recipe, lab.recipe.study.mixture
    if study.phases > 1 or "reserve" in study.model_fields_set or "match_repetition" in recipe.study.model_fields_set:
        return False
    concluded = [
        set(content["runs"])
        for content in lab.store.stage_contents("mixture")
        # Damaged records are not looked at: the study then runs as a new one.
        if isinstance(content, dict) and not content.get("stopped") and _is_list_of_runs(content.get("runs"))
    ]
    if not concluded:
        return False
    plain = replace(size, text_share=1.0)
    runs = {points.run(plain, row, study.seed).id for row in mixtures}
    return any(done <= runs for done in concluded)


def _is_list_of_runs(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(run, str) for run in value)


def _refuse_few(design: np.ndarray, lab: Lab) -> None:
    """Refuse limits that leave too few different mixtures for a law, before anything is trained."""
    found = different(design)
    if found >= MIN_MIXTURES:
        return
    limits = lab.recipe.limits
    raise UsageError(
        f"limits: the {counted(len(design), 'mixture')} of the study include only {found} that differ by more than "
        f"{_SAME:.1%} of "
        f"the tokens, but a law needs {MIN_MIXTURES} (floors {limits.floors}, ceilings {limits.ceilings}, max_epochs "
        f"{limits.max_epochs:g}); widen the limits, or train on fewer tokens"
    )


def different(mixtures: np.ndarray) -> int:
    """The number of distinct mixtures in [n, d]."""
    distinct: list[np.ndarray] = []
    for mixture in mixtures:
        if all(np.abs(mixture - other).sum() / 2 > _SAME for other in distinct):
            distinct.append(mixture)
    return len(distinct)
