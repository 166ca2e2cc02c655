"""The record of the batches that a run skips: ``skipped.json`` in its folder.

A step whose batch is skipped takes no update. The step's number, its learning rate and the batches of all other steps
stay the same (contract 2). So the result is a pure function of the specification and this record: with the record in
its folder, a new run gives the same weights. Steps are counted as in the metrics, from 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from armillary.files import PASSING
from armillary.recipe import ArmillaryError, DamagedFileError, ForeignFileError, read_sealed, write_sealed
from armillary.train.writing import writing

SKIPPED = "skipped.json"
FORMAT = 1


def read_skips(folder: Path, run: str) -> dict[int, str]:
    """The steps of ``run`` that take no update, with the reasons; empty without a record.

    Raises:
        DamagedFileError: the record is torn, edited or cannot be read.
        ForeignFileError: it is of a newer format, or of another run.
        ArmillaryError: it cannot be read now.
    """
    path = folder / SKIPPED
    remedy = "restore it from a copy, or move it away: the newest checkpoint also records the steps"
    try:
        document = read_sealed(path, "record of skipped batches", FORMAT, remedy)
    except FileNotFoundError:
        return {}
    except OSError as error:
        if error.errno in PASSING:
            raise ArmillaryError(f"{path}: cannot be read now ({error.strerror}); make it readable") from error
        raise DamagedFileError(f"{path}: cannot be read ({error.strerror}); {remedy}") from error
    if document["run"] != run:
        raise ForeignFileError(f"{path}: is the record of run {document['run']}, not of {run}; move it back")
    try:
        return dict(sorted((_step(entry), str(entry["why"])) for entry in document["skipped"]))
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedFileError(f"{path}: is not a record of skipped batches ({error!r}); {remedy}") from error


def write_skips(folder: Path, run: str, skips: Mapping[int, str]) -> None:
    """Write the record.

    Raises:
        ArmillaryError: it could not be written; the previous record is kept.
    """
    entries = [{"step": step, "why": why} for step, why in sorted(skips.items())]
    with writing(folder / SKIPPED):
        write_sealed(folder / SKIPPED, {"format": FORMAT, "run": run, "skipped": entries})


def _step(entry: Any) -> int:
    step = entry["step"]
    if not isinstance(step, int) or isinstance(step, bool) or step < 1:
        raise ValueError(f"step is {step!r}, but must be a whole number of 1 or more")
    return step
