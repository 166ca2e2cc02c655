"""The documents that everything else reads: model shapes, schedules, run specifications, recipes. Imports no torch."""

from armillary.recipe.adapter import Lora
from armillary.recipe.blocks import Latent, ReLU2
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
from armillary.recipe.lesson import Lesson
from armillary.recipe.lineage import Edge, walk_back
from armillary.recipe.lock import BusyError, exclusive, lock
from armillary.recipe.objective import NextToken, Objective, Preference, PreferenceLoss, Supervised, measures
from armillary.recipe.optimizers import OptimizerOptions, register_options
from armillary.recipe.problem import FileProblem, problem_of
from armillary.recipe.reader import read_yaml
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
from armillary.recipe.shapes import (
    AttentionBlock,
    Block,
    Document,
    Experts,
    Family,
    FeedForwardBlock,
    ModelShape,
    RopeScaling,
    register_block,
)
from armillary.recipe.teaching import Teaching, load_teaching
from armillary.recipe.words import all_problems, counted, first_problem, in_words, plural
from armillary.recipe.written import (
    RECORD,
    RECORD_FORMAT,
    RECORD_REMEDY,
    DamagedDocumentError,
    recorded,
    was_changed,
)

__all__ = [
    "RECORD",
    "RECORD_FORMAT",
    "RECORD_REMEDY",
    "AnnealStudy",
    "ArmillaryError",
    "AttentionBlock",
    "Block",
    "BusyError",
    "Checkpoints",
    "CorpusSpec",
    "DamagedDocumentError",
    "DamagedFileError",
    "Decay",
    "Document",
    "DomainSpec",
    "Edge",
    "Experts",
    "Family",
    "FeedForwardBlock",
    "FileProblem",
    "ForeignFileError",
    "Given",
    "LadderStudy",
    "LargeRun",
    "Latent",
    "Layout",
    "LengthPhase",
    "Lesson",
    "Limits",
    "Lora",
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
    "PreferenceLoss",
    "ReLU2",
    "Recipe",
    "RopeScaling",
    "RunSpec",
    "Schedule",
    "Start",
    "Supervised",
    "Teaching",
    "TokenizerSpec",
    "Training",
    "UsageError",
    "Validation",
    "all_problems",
    "canonical_hash",
    "counted",
    "decay_factor",
    "exclusive",
    "first_problem",
    "given",
    "in_words",
    "is_workspace",
    "keep_recipe",
    "load_document",
    "load_recipe",
    "load_teaching",
    "load_training",
    "lock",
    "measures",
    "parse_budget",
    "plural",
    "problem_of",
    "read_json",
    "read_sealed",
    "read_yaml",
    "recorded",
    "register_block",
    "register_options",
    "results_folder",
    "walk_back",
    "was_changed",
    "without_passwords",
    "write_sealed",
]
