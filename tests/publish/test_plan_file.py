"""The plan of a transfer as a file."""

from __future__ import annotations

from pathlib import Path

import pytest

from armillary.publish.plan import read_plan
from armillary.recipe import DamagedFileError, write_sealed


def test_a_sealed_file_of_another_kind_is_no_plan(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    assert read_plan(path) is None
    write_sealed(path, {"format": 1, "wall_s": {}})
    with pytest.raises(DamagedFileError, match="not a plan of a publication"):
        read_plan(path)
