"""Converts system errors while a run's file is written to one clear line."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
from safetensors import SafetensorError

from armillary.recipe import ArmillaryError


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Convert a system error while ``path`` is written to one clear line.

    Raises:
        ArmillaryError: the file, the reason and the remedy.
    """
    try:
        yield
    except (OSError, SafetensorError, pa.ArrowException) as error:
        raise ArmillaryError(
            f"{path}: could not be written ({reason(error)}); free space or fix permissions, then start the run "
            "again: it resumes from its last checkpoint"
        ) from error


def reason(error: Exception) -> str:
    """An error as text, without the path that the message already names."""
    return error.strerror or str(error) if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
