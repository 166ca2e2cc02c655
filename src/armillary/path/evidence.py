"""Combines the outcomes of all stages: the machine-readable summary and the lineage of the published model.

Runs are looked up by id, never by position. Values that a stage does not have are missing here too; nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import armillary
from armillary.corpus import Corpus
from armillary.goodput import read_events
from armillary.path.examination import Examined, score_rows
from armillary.path.taught import Taught, brief
from armillary.recipe import ArmillaryError, Edge, Recipe, RunResult
from armillary.store import Store, iso_time
from armillary.study import (
    AnnealOutcome,
    Found,
    LadderOutcome,
    LrOutcome,
    MixtureOutcome,
    Plan,
    TargetOutcome,
)

STUDIES = ("mixture", "mixture-confirm", "anneal", "lr", "lr-confirm", "ladder", "target")
_OF_LR = ("lr", "lr-confirm")
_Outcome = MixtureOutcome | AnnealOutcome | LrOutcome | LadderOutcome | TargetOutcome


@dataclass
class Evidence:
    """The outcomes of the stages reached; the others are None."""

    recipe: Recipe
    corpus: Corpus
    store: Store
    plan: Plan
    mixture: MixtureOutcome | None = None
    anneal: AnnealOutcome | None = None
    lr: LrOutcome | None = None
    found: Found | None = None
    ladder: LadderOutcome | None = None
    prediction: dict[str, Any] | None = None
    target: TargetOutcome | None = None
    verdict: dict[str, Any] | None = None
    examined: Examined | None = None
    lesson: Taught | None = None
    lesson_failed: str | None = None

    @property
    def unfinished(self) -> list[str]:
        """A sentence for each run that failed for a transient cause, which the next call retries."""
        sentences = [f"{name}: run {row}" for name, found in self.outcomes.items() for row in found.passing]
        if self.verdict is not None and self.verdict["status"] == "pending":
            sentences.append(f"verdict: {self.verdict['reason']}")
        if self.lesson_failed is not None:
            sentences.append(f"lesson: {self.lesson_failed}")
        return sentences

    @property
    def outcomes(self) -> dict[str, _Outcome]:
        """The outcomes of the stages that train runs, as far as they are reached."""
        stages = {
            "mixture": self.mixture,
            "anneal": self.anneal,
            "lr": self.lr,
            "ladder": self.ladder,
            "target": self.target,
        }
        return {name: outcome for name, outcome in stages.items() if outcome is not None}

    @property
    def runs(self) -> dict[str, list[str]]:
        """Ids of the runs of each study behind the outcomes, without runs of other plans in the store.

        A run shared by two studies counts for the first. Without a learning-rate study, its two names are missing.
        """
        found: dict[str, list[str]] = {study: [] for study in STUDIES if self.lr is not None or study not in _OF_LR}
        seen: set[str] = set()
        for outcome in self.outcomes.values():
            for study, runs in outcome.study_runs.items():
                found[study] = [run for run in runs if run not in seen]
                seen.update(runs)
        return found


def summary(evidence: Evidence, wall_s: Mapping[str, float]) -> dict[str, Any]:
    """The whole path in a few machine-readable numbers (losses in nats per token); null for missing numbers."""
    prediction, target, verdict = evidence.prediction, evidence.target, evidence.verdict
    assert prediction is not None and verdict is not None
    store = evidence.store
    runs = [run for group in evidence.runs.values() for run in group]
    done = [result for run in runs if (result := store.result(run)) is not None]
    started = store.started_at(prediction["run"])
    arms, differences = (target.arms, target.differences) if target is not None else ([], [])
    weights = evidence.recipe.target_weights
    scores = [] if evidence.examined is None else [asdict(row) for row in score_rows(evidence.examined, weights)]
    return {
        "format": 1,
        "name": evidence.recipe.name,
        "wall_s": sum(wall_s.values()),
        "runs": len(done),
        "flops": sum(spent_flops(store, result) for result in done),
        "target": {a.name: {"mean": a.mean, "low": a.low, "high": a.high} for a in arms},
        "differences": [d.model_dump(mode="json") for d in differences],
        "verdict": verdict["status"],
        "predictions": verdict["rows"],
        "examination": scores,
        "lesson": brief(evidence.lesson) if evidence.lesson is not None else evidence.lesson_failed,
        "recorded_at": prediction["recorded_at"],
        "started_at": None if started is None else iso_time(started),
        "mixture": evidence.found.mixture if evidence.found else None,
        "annealing": evidence.found.annealing.name if evidence.found else None,
        "lr": prediction["spec"]["optimizer"]["lr"],
        "target_run": prediction["run"],
        "failed": [row.model_dump(mode="json") for outcome in evidence.outcomes.values() for row in outcome.failed],
        "corpus": evidence.corpus.hash,
        "version": armillary.__version__,
    }


def lineage(evidence: Evidence) -> dict[str, Any]:
    """The lineage from the published weights to the recipe, the runs behind it, and the text (contract 5).

    The verdict is None unless it is about the published run.

    Raises:
        ArmillaryError: no run has weights to publish.
    """
    run = evidence.target.published if evidence.target is not None else None
    result = None if run is None else evidence.store.result(run)
    if run is None or result is None:
        raise ArmillaryError("the target run has no result yet, so there is no model to publish; run `armillary train`")
    verdict = evidence.verdict
    judged = verdict is not None and verdict["run"] == run and verdict["status"] == "judged"
    domains = {
        name: {
            "source": public_source(domain.source),
            "licence": domain.licence,
            "train": domain.train,
            "train_tokens": domain.train_tokens,
            "validation_tokens": domain.validation_tokens,
        }
        for name, domain in evidence.corpus.manifest.domains.items()
    }
    spec = evidence.store.run_spec(run).model_dump(mode="json")
    if (spec.get("start") or {}).get("weights"):
        spec["start"]["weights"] = public_source(spec["start"]["weights"])
    argued = {study: runs for study, runs in evidence.runs.items() if study != "target"}
    edges = [Edge(f"run:{run}", "argued by", f"run:{other}") for runs in argued.values() for other in runs]
    known = evidence.store.edges([run, *(other for runs in argued.values() for other in runs)])
    # An examination reads the published model and is not part of its origin; including it would make a second call
    # publish again.
    edges += [edge for edge in known if edge.how != "examined by"]
    return {
        "run": run,
        "spec": spec,
        "corpus": {"hash": evidence.corpus.hash, "domains": domains},
        "edges": list(dict.fromkeys(edges)),
        "argued_by": argued,
        "prediction": evidence.prediction,
        "verdict": verdict["rows"] if verdict is not None and judged else None,
        "verdict_status": None if verdict is None else verdict["status"],
        "losses": result.loss,
        "passes": result.epochs,
    }


def public_source(source: str) -> str:
    """A domain's source without parent folders, so that it can leave this machine."""
    return Path(source).name if Path(source).is_absolute() else source


def spent_flops(store: Store, result: RunResult) -> float:
    """FLOPs of a run without the steps taken by its trunk; if its events are lost, those of the whole run."""
    try:
        first = next(iter(read_events(store.run_folder(result.run) / "events.jsonl")), None)
    except (ArmillaryError, OSError):
        first = None
    return result.flops if first is None else result.flops * (1 - first.step / store.run_spec(result.run).steps)
