"""Studies: designs, the run store, the mixture, annealing and ladder studies, predictions and verdicts."""

from armillary.study.anneal import AnnealOutcome, anneal_study
from armillary.study.executor import (
    Executor,
    Failure,
    InterruptedStudyError,
    Job,
    Probe,
    Progress,
    default_workers,
)
from armillary.study.lab import Annealing, Edge, FailedRun, Lab, Phase, StageOutcome, phases, stage_key
from armillary.study.ladder import HeldOutRung, LadderOutcome, Point, fit_law, hold_out_rungs, ladder_study
from armillary.study.limits import Allowed
from armillary.study.local import LocalExecutor
from armillary.study.mixture import Candidate, MixtureOutcome, mixture_study
from armillary.study.on_ray import RayExecutor, check_place
from armillary.study.over_ranks import OverRanks
from armillary.study.predictions import (
    INTERVAL,
    Arm,
    Difference,
    Found,
    TargetOutcome,
    forecast,
    found_recipe,
    judge,
    predict,
    restore_target,
    target_spec,
    train_target,
)
from armillary.study.sizing import (
    STAGES,
    Plan,
    SmallBudgetError,
    Stage,
    make_plan,
    plan_inputs,
    remaining,
    smallest_plan,
)
from armillary.study.store import Store, iso_time, verify_database

__all__ = [
    "INTERVAL",
    "STAGES",
    "Allowed",
    "AnnealOutcome",
    "Annealing",
    "Arm",
    "Candidate",
    "Difference",
    "Edge",
    "Executor",
    "FailedRun",
    "Failure",
    "Found",
    "HeldOutRung",
    "InterruptedStudyError",
    "Job",
    "Lab",
    "LadderOutcome",
    "LocalExecutor",
    "MixtureOutcome",
    "OverRanks",
    "Phase",
    "Plan",
    "Point",
    "Probe",
    "Progress",
    "RayExecutor",
    "SmallBudgetError",
    "Stage",
    "StageOutcome",
    "Store",
    "TargetOutcome",
    "anneal_study",
    "check_place",
    "default_workers",
    "fit_law",
    "forecast",
    "found_recipe",
    "hold_out_rungs",
    "iso_time",
    "judge",
    "ladder_study",
    "make_plan",
    "mixture_study",
    "phases",
    "plan_inputs",
    "predict",
    "remaining",
    "restore_target",
    "smallest_plan",
    "stage_key",
    "target_spec",
    "train_target",
    "verify_database",
]
