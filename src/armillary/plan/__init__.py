"""Plans a training run: parallel layout, memory, time of a step, and cost. Imports no torch."""

from armillary.plan.documents import ClusterSpec
from armillary.plan.estimate import estimate
from armillary.plan.hardware_files import Accelerator, accelerators, find_accelerator, read_accelerator
from armillary.plan.job import Job, Parallelism
from armillary.plan.memory import Memory, peak_memory
from armillary.plan.planning import Plan, Question, make_plan, write_run_file
from armillary.plan.step_time import Step, step_time
from armillary.plan.validate import Report, validate

__all__ = [
    "Accelerator",
    "ClusterSpec",
    "Job",
    "Memory",
    "Parallelism",
    "Plan",
    "Question",
    "Report",
    "Step",
    "accelerators",
    "estimate",
    "find_accelerator",
    "make_plan",
    "peak_memory",
    "read_accelerator",
    "step_time",
    "validate",
    "write_run_file",
]
