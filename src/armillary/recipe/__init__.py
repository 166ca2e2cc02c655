"""The documents that everything else reads: model shapes, schedules, run specifications, recipes. Imports no torch."""

from armillary.recipe.budget import parse_budget
from armillary.recipe.document import (
    AnnealStudy,
    CorpusSpec,
    DomainSpec,
    LadderStudy,
    Limits,
    MixtureLimits,
    MixtureStudy,
    MixtureTarget,
    Recipe,
    TokenizerSpec,
    Training,
    load_document,
    load_recipe,
)
from armillary.recipe.errors import ArmillaryError, UsageError, without_passwords
from armillary.recipe.kept import Given, given, is_workspace, keep_recipe, results_folder
from armillary.recipe.large import Checkpoints, LargeRun, load_training
from armillary.recipe.layout import Layout
from armillary.recipe.lineage import Edge, walk_back
from armillary.recipe.lock import BusyError, exclusive, lock
from armillary.recipe.objective import NextToken, Objective, Preference, Supervised
from armillary.recipe.optimizers import OptimizerOptions, register_options
from armillary.recipe.problem import FileProblem, problem_of
from armillary.recipe.run import (
    Decay,
    LengthPhase,
    MixturePhase,
    OptimizerSpec,
    RunSpec,
    Schedule,
    Start,
    Validation,
    canonical_hash,
    decay_factor,
)
from armillary.recipe.sealed import DamagedFileError, ForeignFileError, read_json, read_sealed, write_sealed
from armillary.recipe.shapes import Document, Experts, Family, ModelShape, RopeScaling

__all__ = [
    "AnnealStudy",
    "ArmillaryError",
    "BusyError",
    "Checkpoints",
    "CorpusSpec",
    "DamagedFileError",
    "Decay",
    "Document",
    "DomainSpec",
    "Edge",
    "Experts",
    "Family",
    "FileProblem",
    "ForeignFileError",
    "Given",
    "LadderStudy",
    "LargeRun",
    "Layout",
    "LengthPhase",
    "Limits",
    "MixtureLimits",
    "MixturePhase",
    "MixtureStudy",
    "MixtureTarget",
    "ModelShape",
    "NextToken",
    "Objective",
    "OptimizerOptions",
    "OptimizerSpec",
    "Preference",
    "Recipe",
    "RopeScaling",
    "RunSpec",
    "Schedule",
    "Start",
    "Supervised",
    "TokenizerSpec",
    "Training",
    "UsageError",
    "Validation",
    "canonical_hash",
    "decay_factor",
    "exclusive",
    "given",
    "is_workspace",
    "keep_recipe",
    "load_document",
    "load_recipe",
    "load_training",
    "lock",
    "parse_budget",
    "problem_of",
    "read_json",
    "read_sealed",
    "register_options",
    "results_folder",
    "walk_back",
    "without_passwords",
    "write_sealed",
]
