"""Reference values of outside formats, which lie beside the repository (``ARMILLARY_VECTORS``)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def vectors(*parts: str) -> Path:
    """A folder or file of the reference values; skips the test if there are none."""
    path = Path(os.environ.get("ARMILLARY_VECTORS", "../shared/vectors")).joinpath(*parts)
    if not path.exists():
        pytest.skip(f"no reference values in {path}; ARMILLARY_VECTORS names their folder")
    return path
