"""Errors of the system while a file of a run is written, as one clear line."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
from safetensors import SafetensorError

from armillary.recipe import ArmillaryError


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the system reports while ``path`` is written into one clear line.

    Raises:
        ArmillaryError: the file, the reason and the remedy.
    """
    try:
        yield
    except (OSError, SafetensorError, pa.ArrowException) as error:
        raise ArmillaryError(
            f"{path}: could not be written ({reason(error)}); make room or give access, then start the run again: it "
            "resumes from its last checkpoint"
        ) from error


def reason(error: Exception) -> str:
    """An error in words, without the path that a message names already."""
    return error.strerror or str(error) if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
