"""``import armillary``: fast, and each of its names is that of a room."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import armillary


def test_the_import_loads_nothing_heavy() -> None:
    program = (
        "import sys, armillary; assert set(armillary.__all__) <= set(dir(armillary))\n"
        "print(sorted({name.partition('.')[0] for name in sys.modules} & {'torch', 'numpy', 'pydantic', 'scipy'}))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("name", armillary.__all__)
def test_a_name_is_that_of_its_room(name: str) -> None:
    found = getattr(armillary, name)
    assert found.__name__ == name and getattr(armillary, name) is found


def test_another_name_is_an_attribute_error_that_lists_the_names() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'Stroe'; it has AnnealLaw, Corpus, "):
        armillary.Stroe  # noqa: B018


def test_type_checkers_see_the_same_names() -> None:
    stub = Path(armillary.__file__).with_suffix(".pyi").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^from armillary\.\w+ import (\w+) as \1$", stub, re.MULTILINE)) == sorted(
        armillary.__all__
    )
