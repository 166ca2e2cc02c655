"""From a budget to the size of each study: how many runs of how many tokens.

A budget is wall time on this machine or FLOPs. For time, the rate of every shape on this machine is looked up, or
measured where it is not known; what no run takes (fitting laws, report, export) is reserved; the target run's share is
set aside, and the studies divide the rest. Sizes are then stored, so that an interrupted study resumes with the sizes
it had, whatever the machine is doing today.
"""

from __future__ import annotations

import math
from typing import Any, Literal

from armillary.corpus import Corpus
from armillary.recipe import Document, ModelShape, Recipe, UsageError, parse_budget
from armillary.study.executor import Probe
from armillary.study.rates import Fleet, Precision, faster_precision, train_rates

Stage = Literal["mixture", "anneal", "ladder", "target"]
STAGES: tuple[Stage, ...] = ("mixture", "anneal", "ladder", "target")

# What validation costs in training tokens: a forward pass is a third of a training step.
_FORWARD_SHARE = 1 / 3
# Starting runs, checkpoints and the last run of a stage, for which one worker has nothing to do.
_SLACK = 1.12
# Seconds for fitting the laws, starting workers, the report and the export: an allowance, the same for every recipe.
_RESERVE_S, _RESERVE_SHARE = 22.0, 0.1
# How the studies divide what the target run leaves.
_SHARES: dict[Stage, float] = {"mixture": 0.55, "anneal": 0.15, "ladder": 0.3}
_MIN_STEPS = 60
# How often a target run is validated.
TARGET_LOOKS = 4
_MIN_MIXTURE_RUNS = 20


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
        """What of the plan decides the runs of these stages."""
        return [self.precision, self.mixture_runs, *[self.tokens[stage] for stage in stages]]


def remaining(budget: str, spent_s: float) -> str:
    """A budget in time less what is spent of it and what no run takes; one in FLOPs as it is.

    Raises:
        UsageError: nothing is left.
    """
    value, unit = parse_budget(budget)
    if unit == "flops":
        return budget
    if spent_s >= value:
        raise UsageError(
            f"budget {budget} is too small: building the corpus alone took {spent_s:.0f} s; give more, or run "
            "`armillary corpus` first, which is not part of a later budget"
        )
    left = value - spent_s
    return f"{left - min(_RESERVE_S, _RESERVE_SHARE * left):.3f}s"


def plan_inputs(recipe: Recipe) -> dict[str, Any]:
    """What of the recipe decides the plan: all but the question, the limits, and what does not change a run's cost."""
    without = {"lr", "lr_width", "lr_exponent", "weight_decay", "grad_clip", "warmup_share", "layout", "seeds"}
    asked: dict[str, Any] = recipe.model_dump(
        mode="json",
        exclude={
            **dict.fromkeys(("name", "corpus", "target", "limits"), True),
            "training": without,
            "study": {"mixture": {"seed"}},
        },
    )
    return {**asked, "seeds": len(recipe.training.seeds)}


def make_plan(
    recipe: Recipe,
    corpus: Corpus,
    executor: Fleet,
    stages: tuple[Stage, ...] = STAGES,
    budget: str | None = None,
) -> Plan:
    """Size the given stages to ``budget`` (else the recipe's, else as the recipe says).

    Raises:
        UsageError: the budget is too small for the smallest sensible study; the message says what it takes.
    """
    shapes = _shapes(recipe, corpus)
    precision, rates = _measure(recipe, shapes, executor)
    tokens: dict[Stage, int] = {
        "mixture": recipe.study.mixture.tokens,
        "anneal": recipe.study.anneal.tokens,
        "ladder": recipe.study.ladder.tokens,
        "target": recipe.training.tokens or 0,
    }
    runs = recipe.study.mixture.runs
    budget = budget or recipe.budget
    if budget is not None:
        value, unit = parse_budget(budget)
        cost = {
            name: (1 / rates[name] if unit == "s" else shape.train_flops_per_token(recipe.training.context_length))
            for name, shape in shapes.items()
        }
        value /= _SLACK if unit == "s" else 1.0
        if "target" in stages:
            if recipe.training.budget_share is not None:
                allowed = value * recipe.training.budget_share
                tokens["target"] = _solve(recipe, corpus, "target", runs, cost, allowed, budget)
            value -= _cost(recipe, corpus, "target", tokens["target"], runs, cost)
        # The mixture comes last: it takes what the others leave when more tokens than the target's own would not help.
        studies: list[Stage] = [stage for stage in ("ladder", "anneal", "mixture") if stage in stages]
        weight = sum(_SHARES[stage] for stage in studies)
        for stage in studies:
            allowed = value * _SHARES[stage] / weight
            if stage == "mixture":
                smallest = _MIN_STEPS * recipe.training.batch_sequences * recipe.training.context_length
                while runs > _MIN_MIXTURE_RUNS and _cost(recipe, corpus, stage, smallest, runs, cost) > allowed:
                    runs -= 1
            tokens[stage] = _solve(recipe, corpus, stage, runs, cost, allowed, budget)
            if "target" in stages and stage != "mixture":
                tokens[stage] = min(tokens[stage], tokens["target"])
            value -= _cost(recipe, corpus, stage, tokens[stage], runs, cost)
            weight -= _SHARES[stage]
    if tokens["target"] == 0:
        # Only studies were asked for, and the target's size hangs on a budget for everything.
        tokens["target"] = tokens["ladder"]
    per_second = {name: 1 / rate for name, rate in rates.items()}
    per_flop = {n: s.train_flops_per_token(recipe.training.context_length) for n, s in shapes.items()}
    return Plan(
        budget=budget,
        precision=precision,
        workers=executor.n_workers,
        mixture_runs=runs,
        tokens=tokens,
        seconds={s: _SLACK * _cost(recipe, corpus, s, tokens[s], runs, per_second) for s in stages},
        flops={s: _cost(recipe, corpus, s, tokens[s], runs, per_flop) for s in stages},
        rates=rates,
    )


def _shapes(recipe: Recipe, corpus: Corpus) -> dict[str, ModelShape]:
    """Every shape that the recipe trains, by ``family/depth``."""
    study, family = recipe.study, recipe.model.family
    wanted = [(family, study.mixture.depth), (family, study.anneal.depth), (family, recipe.model.depth)]
    wanted += [(name, depth) for name in study.ladder.families for depth in study.ladder.depths]
    return {f"{n}/{d}": recipe.family(n).shape(d, corpus.vocab_size) for n, d in dict.fromkeys(wanted)}


def _measure(recipe: Recipe, shapes: dict[str, ModelShape], executor: Fleet) -> tuple[Precision, dict[str, float]]:
    """The precision to use (the faster one on the target, where the recipe leaves it open) and the rates in it.

    A target with a layout may not fit one device: it is not tried, and reckoned to be as fast in FLOPs as the largest
    of the others.
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


def _cost(
    recipe: Recipe, corpus: Corpus, stage: Stage, tokens: float, mixture_runs: int, cost: dict[str, float]
) -> float:
    """What a stage costs whose largest run takes ``tokens``, in the units of ``cost`` per training token."""
    study, family, seeds = recipe.study, recipe.model.family, len(recipe.training.seeds)
    look = _FORWARD_SHARE * len(corpus.domains) * recipe.validation_windows * recipe.training.context_length
    if stage == "mixture":
        runs = mixture_runs + (study.mixture.candidates + 2) * study.mixture.confirm_seeds
        return runs * (tokens + look) * cost[f"{family}/{study.mixture.depth}"]
    if stage == "anneal":
        a = study.anneal
        branches = len(a.shapes) * len(a.sharpen)
        share = 1 - min(a.shares) + branches * sum(a.shares)
        looks = 1 + branches * len(a.shares)
        return a.seeds * (tokens * share + looks * look) * cost[f"{family}/{a.depth}"]
    if stage == "ladder":
        share = 1 + max(study.anneal.shares) * (sum(study.ladder.fractions) - 1)
        looks = 1 + len(study.ladder.fractions)
        names = [f"{name}/{depth}" for name in study.ladder.families for depth in study.ladder.depths]
        return study.ladder.seeds * (tokens * share + looks * look) * sum(cost[name] for name in names)
    return 3 * seeds * (tokens + TARGET_LOOKS * look) * cost[f"{family}/{recipe.model.depth}"]


def _solve(
    recipe: Recipe, corpus: Corpus, stage: Stage, mixture_runs: int, cost: dict[str, float], allowed: float, budget: str
) -> int:
    """Tokens of the stage's largest run so that the stage costs ``allowed`` (the cost is linear in the tokens)."""
    fixed = _cost(recipe, corpus, stage, 0, mixture_runs, cost)
    slope = _cost(recipe, corpus, stage, 1, mixture_runs, cost) - fixed
    tokens = (allowed - fixed) / slope
    smallest = _MIN_STEPS * recipe.training.batch_sequences * recipe.training.context_length
    if tokens < smallest:
        factor = (fixed + slope * smallest) / allowed if allowed > 0 else math.inf
        # Rounded up: what the message says must be enough.
        remedy = (
            f"give about {math.ceil(10 * factor) / 10:.1f} times as much"
            if factor < 1e3
            else "give more, or a smaller target run"
        )
        raise UsageError(
            f"budget {budget} is too small for the {stage} stage, which needs {_MIN_STEPS} steps per run; {remedy}"
        )
    return int(tokens)
