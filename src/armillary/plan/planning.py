"""From the documents to a plan: the best layout, what the whole run costs, and a run file with the layout."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from armillary.files import write_file
from armillary.plan.constants import Constants, constants
from armillary.plan.documents import ClusterSpec, read_cluster, read_model
from armillary.plan.job import Job, Parallelism
from armillary.plan.search import Found, search
from armillary.plan.software_files import software
from armillary.recipe import (
    LargeRun,
    Layout,
    MixturePhase,
    OptimizerSpec,
    RunSpec,
    Schedule,
    UsageError,
    load_training,
)

Goodput = Callable[[ClusterSpec, int], float]

_TOKENS_PER_PARAMETER = 20  # Hoffmann et al. 2022, arXiv 2203.15556
_LR = 3e-4


@dataclass(frozen=True)
class Question:
    """The request for a plan: the files of model and cluster, the batch in tokens, the sequence, the run's tokens.

    Without ``tokens`` the run has 20 tokens per active parameter.
    """

    model: Path
    cluster: Path
    batch_tokens: int
    length: int
    objective: Literal["time", "cost"] = "time"
    tokens: float | None = None


@dataclass(frozen=True)
class Plan:
    """The layouts found, and the cost of the run with the best one."""

    found: Found
    cluster: ClusterSpec
    large: LargeRun | None
    cost: dict[str, Any]

    @property
    def job(self) -> Job:
        """The job in its best layout."""
        return self.found.best.job

    def to_json(self, used: Constants | None = None) -> dict[str, Any]:
        """As plain data."""
        used = used or constants()
        return {
            "best": self.found.best.to_json(used),
            "others": [{**one.to_json(used), "loses_by": self.found.reason(one)} for one in self.found.others],
            "tried": self.found.tried,
            "cost": self.cost,
            "cluster": {
                "accelerator": self.job.accelerator_name,
                "accelerators": self.cluster.accelerators,
                "software": self.cluster.software,
                "precision": self.cluster.precision,
            },
            "parameters": self.job.model.parameters,
            "active_parameters": self.job.model.active_parameters,
        }


def make_plan(question: Question, goodput: Goodput) -> Plan:
    """The best layout for a model on a cluster, and what the run costs.

    ``goodput`` is the share of time that goes into steps, for the cluster and a number of accelerators.

    Raises:
        UsageError: a document has a problem, or no layout divides the model and the batch and fits.
    """
    cluster, name, accelerator = read_cluster(question.cluster)
    shape, large = read_model(question.model)
    if question.batch_tokens % question.length:
        near = max(1, round(question.batch_tokens / question.length)) * question.length
        raise UsageError(
            f"batch_tokens ({question.batch_tokens}) must be a multiple of the sequence ({question.length}); "
            f"the nearest is {near}"
        )
    job = Job(
        shape, Parallelism(dp=cluster.accelerators), question.length, question.batch_tokens // question.length,
        accelerator, software(cluster.software), cluster.precision, accelerator_name=name,
    )  # fmt: skip
    found = search(job, constants(), question.objective)
    best = found.best
    tokens = question.tokens or float(_TOKENS_PER_PARAMETER * shape.active_parameters)
    ranks = best.job.parallelism.ranks
    steps = max(1, round(tokens / best.job.tokens))
    share = goodput(cluster, ranks)
    if share <= 0:
        raise UsageError(
            f"{question.cluster}: with {ranks} accelerators that fail every {cluster.mtbf_accelerator_hours:g} hours "
            f"and a recovery of {cluster.recovery_s:g} s no step ever completes"
        )
    hours = steps * best.step.total / 3600 / share
    price = cluster.price_per_hour
    cost = {
        "tokens": steps * best.job.tokens,
        "steps": steps,
        "goodput": share,
        "hours": hours,
        "accelerators": ranks,
        "accelerator_hours": hours * ranks,
        "energy_mwh": hours * ranks * accelerator.power_w * cluster.power_overhead / 1e6,
        "money": None if price is None else hours * ranks * price,
        "currency": cluster.currency,
    }
    return Plan(found, cluster, large, cost)


def layout_of(job: Job) -> Layout:
    """The trainer's layout of a job.

    Raises:
        UsageError: the trainer has no such layout.
    """
    p = job.parallelism
    if p.zero == 1:
        raise UsageError("this trainer has no layout with ZeRO stage 1 only; plan with software: armillary")
    values: dict[str, Any] = {"pp": p.pp, "cp": p.cp, "tp": p.tp, "ep": p.ep, "recompute": p.recompute}
    values["dp_replicate" if p.zero == 0 else "dp_shard"] = p.dp // p.ep
    if p.zero == 2:
        values["reshard"] = False
    if job.software.name == "armillary-compiled":
        values["compile"] = True
    if p.pp > 1:
        values["microbatches"] = job.microbatches
        if p.stages > 1:
            values |= {"schedule": "interleaved", "stages_per_rank": p.stages}
        if p.layers_per_stage is not None:
            values["layers_per_stage"] = p.layers_per_stage
    return Layout.model_validate(values)


def write_run_file(plan: Plan, out: Path) -> LargeRun:
    """Write a run file with the plan's layout: the model's own run file if the plan was made from one.

    Otherwise corpus, mixture, learning rate and seed are placeholders, with a comment to replace them.

    Raises:
        UsageError: the trainer has no such layout, or the run cannot be divided by it.
    """
    job, layout = plan.job, layout_of(plan.job)
    accumulation = job.microbatches if job.parallelism.pp == 1 else 1
    sizes: dict[str, Any] = {
        "context_length": job.length,
        "batch_sequences": job.sequences,
        "accumulation": accumulation,
    }
    head = f"# Written by armillary plan: {job.parallelism}.\n"
    if plan.large is not None:
        large = plan.large.model_copy(update={"run": plan.large.run.model_copy(update=sizes), "layout": layout})
    else:
        head += "# Replace corpus, the weights of the mixture (names of the corpus's domains) and the learning rate.\n"
        steps = int(plan.cost["steps"])
        run = RunSpec(
            corpus="", model=job.model, steps=steps, seed=1, precision="bf16" if job.precision != "fp32" else "fp32",
            mixture=(MixturePhase(start_step=0, weights={"domain": 1.0}),), optimizer=OptimizerSpec(lr=_LR),
            schedule=Schedule(warmup_steps=min(steps // 10, 2000), decay_steps=steps // 5), **sizes,
        )  # fmt: skip
        large = LargeRun(name="planned", corpus="corpus", run=run, layout=layout)
    document = large.model_dump(mode="json", exclude_none=True, exclude_defaults=True)
    document = {"format": 1, **document, "run": {"format": 1, **document["run"]}}
    for block in ("attention", "feed_forward"):  # a block's kind is a default of its own class
        if (chosen := getattr(large.run.model, block)) is not None:
            document["run"]["model"][block]["kind"] = chosen.kind
    document["run"].pop("corpus", None) if not large.run.corpus else None
    write_file(out, (head + yaml.safe_dump(document, sort_keys=False, allow_unicode=True)).encode())
    written = load_training(out)
    assert isinstance(written, LargeRun)
    return written
