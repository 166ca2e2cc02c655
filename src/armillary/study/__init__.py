"""Studies: designs, the run store, the mixture, annealing and ladder studies, predictions and verdicts."""

from armillary.recipe import parse_budget
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
from armillary.study.lab import Annealing, Lab, record, stage_key, stored
from armillary.study.ladder import HeldOutRung, LadderOutcome, Point, fit_law, hold_out_rungs, ladder_study
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
    target_spec,
    train_target,
)
from armillary.study.sizing import STAGES, Plan, Stage, make_plan
from armillary.study.store import Store, iso_time

__all__ = [
    "INTERVAL",
    "STAGES",
    "AnnealOutcome",
    "Annealing",
    "Arm",
    "Candidate",
    "Difference",
    "Executor",
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
    "Plan",
    "Point",
    "Probe",
    "Progress",
    "RayExecutor",
    "Stage",
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
    "parse_budget",
    "predict",
    "record",
    "stage_key",
    "stored",
    "target_spec",
    "train_target",
]
