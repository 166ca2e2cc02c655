"""Laws from files to files: the implementation of the command line's verbs on laws.

Tables come in as CSV, laws as the files of ``files``, limits and targets as YAML.
"""

from __future__ import annotations

import os
from pathlib import Path

from armillary.laws.files import may_replace
from armillary.laws.workbench.doubts import (
    UnlikelyColumnWarning,
    refuse_rising,
    warn_of_perplexities,
    warn_of_swapped,
)
from armillary.laws.workbench.entries import about
from armillary.laws.workbench.fit import FORMS, fit_anneal, fit_examination, fit_gain, fit_mixture, fit_scaling
from armillary.laws.workbench.predict import (
    Rows,
    measured_against,
    predict,
    predict_curve,
    predict_examination,
    predict_gain,
    predict_mixture,
    predict_points,
)
from armillary.laws.workbench.summary import columns_read, save, tables
from armillary.recipe import UsageError

__all__ = [
    "FORMS",
    "Rows",
    "UnlikelyColumnWarning",
    "about",
    "check_law_out",
    "check_out",
    "columns_read",
    "fit_anneal",
    "fit_examination",
    "fit_gain",
    "fit_mixture",
    "fit_scaling",
    "measured_against",
    "names",
    "predict",
    "predict_curve",
    "predict_examination",
    "predict_gain",
    "predict_mixture",
    "predict_points",
    "refuse_rising",
    "save",
    "tables",
    "warn_of_perplexities",
    "warn_of_swapped",
]


def check_out(path: Path, *inputs: Path | None) -> None:
    """Check, before any work, that ``path`` can be written and is not one of the ``inputs``.

    Raises:
        UsageError: it is a folder, is not writable, or is one of the inputs.
    """
    if path.is_dir() or not path.name:
        raise UsageError(f"--out {path} is a folder; give the name of a file in it")
    if path.exists() and any(file is not None and file.exists() and file.samefile(path) for file in inputs):
        raise UsageError(f"--out {path} is an input file and would be overwritten; give another name")
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise UsageError(f"--out {path}: {folder} is not writable; give another place")


def check_law_out(path: Path, *inputs: Path | None) -> None:
    """As ``check_out``, for a law file; a file of another kind, or a law of a newer version, is not overwritten.

    Raises:
        UsageError: as ``check_out``, or ``path`` is such a file.
    """
    check_out(path, *inputs)
    if path.exists() and not may_replace(path):
        raise UsageError(f"--out {path}: this file is not a law written by this version; give another name")


def names(columns: str | None) -> list[str] | None:
    """Column names from a comma-separated list."""
    return None if columns is None else [name.strip() for name in columns.split(",") if name.strip()]
