"""From a budget to the size of each study: how many runs of how many tokens.

A budget is wall time on this machine or FLOPs. For time, the rate of every shape on this machine is looked up, or
measured if unknown. Time outside runs (fitting laws, report, export) is reserved, the target run's share is set aside,
and the studies divide the rest. Sizes are then stored, so an interrupted study resumes with the same sizes, whatever
the current load of the machine.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from armillary.corpus import Corpus
from armillary.launch import Probe
from armillary.recipe import AnnealStudy, Document, ModelShape, Recipe, UsageError, parse_budget
from armillary.study.rates import Fleet, Precision, faster_precision, train_rates

Stage = Literal["mixture", "anneal", "lr", "ladder", "target"]
# In their order; a recipe without a section ``study.lr`` has no stage ``lr`` (see ``stages_of``).
STAGES: tuple[Stage, ...] = ("mixture", "anneal", "lr", "ladder", "target")

# The cost of validation in training tokens: a forward pass is a third of a training step.
_FORWARD_SHARE = 1 / 3
# Overhead: starting runs, checkpoints, and idle workers at the end of a study.
_SLACK = 1.12
# Seconds for fitting the laws, starting workers, the report and the export: an allowance, the same for every recipe.
_RESERVE_S, _RESERVE_SHARE = 22.0, 0.1
# The shares of the studies in the budget that the target run leaves.
_SHARES: dict[Stage, float] = {"mixture": 0.55, "anneal": 0.15, "lr": 0.15, "ladder": 0.3}
# Multiples of the rate that a size may get beyond the end of the grid.
LR_BEYOND = 2
# The factor from the longest (shortest) decay, and from the largest power, to the next one beyond it.
BEYOND = 1.5
_MIN_STEPS = 60
# The number of validations of a target run.
TARGET_LOOKS = 4
_MIN_MIXTURE_RUNS = 20


def further_annealings(study: AnnealStudy) -> int:
    """How many annealings may be trained beyond the edge of those listed; 0 if only one share and one power are."""
    return study.reserve if len(study.shares) > 1 or len(study.sharpen) > 1 else 0


class Plan(Document):
    """Sizes of the studies and of the target run, made for ``budget``; ``tokens`` are those of a stage's largest run.

    ``seconds`` and ``flops`` are expected totals per stage; ``rates`` the tokens per second of all workers
    together by shape (``family/depth``).
    """

    budget: str | None
    precision: Precision
    workers: int
    mixture_runs: int
    tokens: dict[Stage, int]
    seconds: dict[Stage, float]
    flops: dict[Stage, float]
    rates: dict[str, float]

    def size(self, *stages: Stage) -> list[Any]:
        """The part of the plan that determines the runs of these stages."""
        return [self.precision, self.mixture_runs, *[self.tokens[stage] for stage in stages]]


def stages_of(recipe: Recipe) -> tuple[Stage, ...]:
    """The stages of a recipe, in their order."""
    return tuple(stage for stage in STAGES if stage != "lr" or recipe.study.lr is not None)


def smallest_plan() -> Plan:
    """A plan with the shortest runs, to check a recipe before throughput is measured."""
    tokens = dict.fromkeys(STAGES, 0)
    return Plan(budget=None, precision="fp32", workers=1, mixture_runs=1, tokens=tokens, seconds={}, flops={}, rates={})


def remaining(budget: str, spent_s: float, set_aside: float = 0.0) -> str:
    """The part of a budget that the runs may use. The share ``set_aside`` for later work is subtracted, and from a
    budget in time also the time already spent and the time outside runs.

    Raises:
        UsageError: no budget is left.
    """
    value, unit = parse_budget(budget)
    if unit == "flops":
        return f"{value * (1 - set_aside):.6e}flops".replace("e+", "e") if set_aside else budget
    left = value * (1 - set_aside) - spent_s
    if left <= 0:
        raise UsageError(
            f"budget {budget} is too small: building the corpus alone took {spent_s:.0f} s"
            + (f", and {set_aside:.0%} of it are reserved for the lesson" if set_aside else "")
            + "; give more, or run `armillary corpus` first, which does not count towards a later budget"
        )
    return f"{left - min(_RESERVE_S, _RESERVE_SHARE * left):.3f}s"


def plan_inputs(recipe: Recipe) -> dict[str, Any]:
    """The part of the recipe that determines the plan: no target, no limits, only fields that affect cost."""
    without = {"lr", "lr_width", "lr_exponent", "weight_decay", "grad_clip", "warmup_share", "layout", "seeds"}
    asked: dict[str, Any] = recipe.model_dump(
        mode="json",
        exclude={
            **dict.fromkeys(("name", "corpus", "target", "limits", "lesson", "trackers"), True),
            "training": without,
            "study": {"mixture": {"seed"}},
        },
    )
    return {**asked, "seeds": len(recipe.training.seeds)}


def make_plan(
    recipe: Recipe,
    corpus: Corpus,
    executor: Fleet,
    stages: tuple[Stage, ...] | None = None,
    budget: str | None = None,
) -> Plan:
    """Size the given stages (by default all of the recipe) for ``budget``, by default the recipe's; without a budget,
    use the recipe's sizes.

    Raises:
        SmallBudgetError: the budget is too small for the smallest sensible study; the message names a sufficient
            budget.
    """
    stages = stages or stages_of(recipe)
    shapes = _shapes(recipe, corpus)
    precision, rates = _measure(recipe, shapes, executor)
    tokens: dict[Stage, int] = {
        "mixture": recipe.study.mixture.tokens,
        "anneal": recipe.study.anneal.tokens,
        "ladder": recipe.study.ladder.tokens,
        "target": recipe.training.tokens or 0,
    }
    if recipe.study.lr is not None:
        tokens["lr"] = recipe.study.lr.tokens
    runs = recipe.study.mixture.runs
    budget = budget or recipe.budget
    if budget is not None:
        value, unit = parse_budget(budget)
        slack = _SLACK if unit == "s" else 1.0
        cost = {
            name: (1 / rates[name] if unit == "s" else shape.train_flops_per_token(recipe.training.context_length))
            for name, shape in shapes.items()
        }
        at_once = _at_once(recipe, executor) if unit == "s" else 1
        sizing = _Sizing(recipe, stages, _Costs(recipe, corpus, cost, at_once))
        try:
            sized, runs = sizing.sizes(value / slack)
        except _TooSmallError as error:
            raise SmallBudgetError(error.stage, budget, sizing.smallest(value / slack) * slack, unit) from error
        tokens.update(sized)
    if tokens["target"] == 0:
        # Only studies were requested, and the target's size needs a budget for the whole path.
        tokens["target"] = tokens["ladder"]
    in_seconds = _Costs(recipe, corpus, {name: 1 / rate for name, rate in rates.items()}, _at_once(recipe, executor))
    flops = {name: shape.train_flops_per_token(recipe.training.context_length) for name, shape in shapes.items()}
    in_flops = _Costs(recipe, corpus, flops)
    return Plan(
        budget=budget,
        precision=precision,
        workers=executor.n_workers,
        mixture_runs=runs,
        tokens=tokens,
        seconds={s: _SLACK * in_seconds.of(s, tokens[s], runs) for s in stages},
        flops={s: in_flops.of(s, tokens[s], runs) for s in stages},
        rates=rates,
    )


def _at_once(recipe: Recipe, executor: Fleet) -> int:
    """How many target runs train at the same time: one if it has a layout, since its ranks use the whole machine."""
    return executor.n_workers if recipe.training.layout is None else 1


class SmallBudgetError(UsageError):
    """A budget that is too small for ``stage``; ``needed`` (seconds or FLOPs) is enough."""

    def __init__(self, stage: str, budget: str, needed: float, unit: str) -> None:
        super().__init__(
            f"budget {budget} is too small for the {stage} stage, which needs {_MIN_STEPS} steps per run; "
            + (f"give {_as_budget(needed, unit)} or more" if needed < math.inf else "give a smaller target run")
        )
        self.stage, self.needed, self.unit = stage, needed, unit

    def of_whole(self, budget: str, spent_s: float, set_aside: float = 0.0) -> SmallBudgetError:
        """The same error for the whole ``budget``: with ``spent_s`` seconds spent before planning, and the share
        ``set_aside`` for work after the runs.
        """
        # Also add the share of the rest that a plan reserves.
        reserved = min(_RESERVE_S, _RESERVE_SHARE * self.needed / (1 - _RESERVE_SHARE))
        spent = spent_s + reserved if self.unit == "s" else 0.0
        return SmallBudgetError(self.stage, budget, (self.needed + spent) / (1 - set_aside), self.unit)


def _as_budget(value: float, unit: str) -> str:
    """A budget of at least ``value`` in the form of a recipe; a tenth more, since rates differ from call to call."""
    value *= 1.1
    if unit == "flops":
        digits = 10.0 ** (math.floor(math.log10(value)) - 1)
        return f"{math.ceil(value / digits) * digits:.1e}flops".replace("e+", "e")
    minutes, seconds = divmod(10 * math.ceil(value / 10), 60)
    hours, minutes = divmod(minutes, 60)
    return "".join(f"{part}{name}" for part, name in ((hours, "h"), (minutes, "m"), (seconds, "s")) if part)


class _TooSmallError(Exception):
    def __init__(self, stage: Stage) -> None:
        self.stage = stage


@dataclass(frozen=True)
class _Costs:
    """The costs of stages in seconds or FLOPs; ``per_token`` is the cost by shape (``family/depth``).

    Target runs are few and long, so a last round of fewer than ``at_once`` of them takes as long as a full one.
    """

    recipe: Recipe
    corpus: Corpus
    per_token: dict[str, float]
    at_once: int = 1

    def of(self, stage: Stage, tokens: float, mixture_runs: int) -> float:
        """The cost of a stage whose largest run takes ``tokens``."""
        recipe, cost = self.recipe, self.per_token
        study, family, seeds = recipe.study, recipe.model.family, len(recipe.training.seeds)
        look = _FORWARD_SHARE * len(self.corpus.domains) * recipe.validation_windows * recipe.training.context_length
        if stage == "mixture":
            runs = mixture_runs + (study.mixture.candidates + 2) * study.mixture.confirm_seeds
            return runs * (tokens + look) * cost[f"{family}/{study.mixture.depth}"]
        if stage == "anneal":
            a = study.anneal
            branches = len(a.shapes) * len(a.sharpen)
            further = further_annealings(a)
            share = 1 - min(a.shares) + branches * sum(a.shares) + further * min(a.max_share, BEYOND * max(a.shares))
            looks = 1 + branches * len(a.shares) + further
            return a.seeds * (tokens * share + looks * look) * cost[f"{family}/{a.depth}"]
        if stage == "lr":
            lr = study.lr
            assert lr is not None
            share, looks = 1 + max(study.anneal.shares) * (sum(lr.fractions) - 1), 1 + len(lr.fractions)
            costs = [cost[f"{family}/{depth}"] for depth in study.lr_depths]
            grid = (len(lr.multiples) + LR_BEYOND) * (tokens * share + looks * look) * sum(costs)
            return grid + 2 * lr.confirm_seeds * (tokens + look) * costs[-1]
        if stage == "ladder":
            share = 1 + max(study.anneal.shares) * (sum(study.ladder.fractions) - 1)
            looks = 1 + len(study.ladder.fractions)
            names = [f"{name}/{depth}" for name in study.ladder.families for depth in study.ladder.depths]
            return study.ladder.seeds * (tokens * share + looks * look) * sum(cost[name] for name in names)
        runs = self.at_once * math.ceil(3 * seeds / self.at_once)
        return runs * (tokens + TARGET_LOOKS * look) * cost[f"{family}/{recipe.model.depth}"]


@dataclass(frozen=True)
class _Sizing:
    """Divides an amount in the units of ``costs`` among stages."""

    recipe: Recipe
    stages: tuple[Stage, ...]
    costs: _Costs

    def sizes(self, value: float) -> tuple[dict[Stage, int], int]:
        """Tokens of each stage's largest run for the amount ``value``, and the number of runs of the mixture design.

        Raises:
            _TooSmallError: the amount is too small; names the first such stage.
        """
        recipe, runs = self.recipe, self.recipe.study.mixture.runs
        tokens: dict[Stage, int] = {}
        if "target" in self.stages:
            tokens["target"] = recipe.training.tokens or 0
            if recipe.training.budget_share is not None:
                tokens["target"] = self._solve("target", runs, value * recipe.training.budget_share)
            value -= self.costs.of("target", tokens["target"], runs)
        # The mixture comes last: it gets the rest of the stages that reach the target's own number of tokens.
        studies: list[Stage] = [stage for stage in ("ladder", "lr", "anneal", "mixture") if stage in self.stages]
        weight = sum(_SHARES[stage] for stage in studies)
        for stage in studies:
            allowed = value * _SHARES[stage] / weight
            if stage == "mixture":
                while runs > _MIN_MIXTURE_RUNS and self.costs.of(stage, self._least, runs) > allowed:
                    runs -= 1
            tokens[stage] = self._solve(stage, runs, allowed)
            if "target" in self.stages and stage != "mixture":
                tokens[stage] = min(tokens[stage], tokens["target"])
            value -= self.costs.of(stage, tokens[stage], runs)
            weight -= _SHARES[stage]
        return tokens, runs

    def smallest(self, value: float) -> float:
        """The smallest sufficient amount above ``value``, within 1%; infinity if there is none."""
        low, high = value, 2 * value
        while not self._enough(high):
            low, high = high, 2 * high
            if high > 1e6 * value:
                return math.inf
        while high > 1.01 * low:
            middle = (low + high) / 2
            low, high = (low, middle) if self._enough(middle) else (middle, high)
        return high

    def _enough(self, value: float) -> bool:
        try:
            self.sizes(value)
        except _TooSmallError:
            return False
        return True

    @property
    def _least(self) -> int:
        return _MIN_STEPS * self.recipe.training.batch_sequences * self.recipe.training.context_length

    def _solve(self, stage: Stage, runs: int, allowed: float) -> int:
        """Tokens of the stage's largest run for a total cost of ``allowed`` (the cost is linear in the tokens)."""
        fixed = self.costs.of(stage, 0, runs)
        tokens = (allowed - fixed) / (self.costs.of(stage, 1, runs) - fixed)
        if tokens < self._least:
            raise _TooSmallError(stage)
        return int(tokens)


def _shapes(recipe: Recipe, corpus: Corpus) -> dict[str, ModelShape]:
    """Every shape that the recipe trains, by ``family/depth``."""
    study, family = recipe.study, recipe.model.family
    wanted = [(family, study.mixture.depth), (family, study.anneal.depth), (family, recipe.model.depth)]
    wanted += [(name, depth) for name in study.ladder.families for depth in study.ladder.depths]
    wanted += [(family, depth) for depth in study.lr_depths]
    return {f"{n}/{d}": recipe.family(n).shape(d, corpus.vocab_size) for n, d in dict.fromkeys(wanted)}


def _measure(recipe: Recipe, shapes: dict[str, ModelShape], executor: Fleet) -> tuple[Precision, dict[str, float]]:
    """The precision (if the recipe leaves it open, the faster one for the target) and the rates in this precision.

    A target with a layout may not fit on one device. It is not measured; its rate in FLOP/s counts as that of the
    largest other shape.
    """
    context, batch, precision = (
        recipe.training.context_length,
        recipe.training.batch_sequences,
        recipe.training.precision,
    )
    optimizer, z_loss = recipe.training.optimizer, recipe.training.z_loss
    target = f"{recipe.model.family}/{recipe.model.depth}"
    spread = recipe.training.layout is not None
    tried = {name: shape for name, shape in shapes.items() if name != target or not spread} or shapes
    flops = {name: shape.train_flops_per_token(context) for name, shape in shapes.items()}
    largest = max(tried, key=lambda name: flops[name])
    if precision == "auto":
        asked = Probe(shapes[largest if spread else target], context, batch, "fp32", optimizer=optimizer, z_loss=z_loss)
        precision = faster_precision(executor, asked)
    found = train_rates(
        executor,
        [Probe(shape, context, batch, precision, optimizer=optimizer, z_loss=z_loss) for shape in tried.values()],
    )
    rates = dict(zip(tried, found, strict=True))
    return precision, {name: rates.get(name, rates[largest] * flops[largest] / flops[name]) for name in shapes}
