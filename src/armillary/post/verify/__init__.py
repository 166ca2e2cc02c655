"""Verifiers of answers: three outcomes (right, wrong, unreadable), one registered file per kind of check."""

# Each module registers its kinds.
from armillary.post.verify import choices, code, gym, mathematics, rules  # noqa: F401
from armillary.post.verify.calibrate import Calibration, Rates, calibrate, labelled_cases
from armillary.post.verify.files import verify_file
from armillary.post.verify.numbers import read_quantity, unit_names
from armillary.post.verify.reading import final_answer
from armillary.post.verify.registry import (
    OUTCOMES,
    Outcome,
    Task,
    Verdict,
    judge_task,
    register_verifier,
    verifier_kinds,
    verify,
    verify_all,
)
from armillary.post.verify.rules import rule_names
from armillary.post.verify.shares import share_interval

__all__ = [
    "OUTCOMES",
    "Calibration",
    "Outcome",
    "Rates",
    "Task",
    "Verdict",
    "calibrate",
    "final_answer",
    "judge_task",
    "labelled_cases",
    "read_quantity",
    "register_verifier",
    "rule_names",
    "share_interval",
    "unit_names",
    "verifier_kinds",
    "verify",
    "verify_all",
    "verify_file",
]
