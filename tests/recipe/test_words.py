"""Words of messages: pydantic's texts reach no user."""

import pytest
from pydantic import BaseModel, Field, ValidationError, field_validator

from armillary.recipe import counted
from armillary.recipe.words import all_problems


class _Document(BaseModel):
    model_config = {"extra": "forbid", "allow_inf_nan": False}

    whole: int = Field(default=1, ge=1, lt=9)
    part: float = Field(default=0.5, gt=0, le=1)
    names: list[str] = Field(default=["a"], min_length=1)
    code: str = Field(default="ab", pattern="^[a-f]+$", max_length=3)
    even: int = Field(default=2, multiple_of=2)

    @field_validator("even")
    @classmethod
    def _never_eight(cls, value: int) -> int:
        if value == 8:
            raise ValueError("eight is taken")
        return value


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"whole": 0}, "whole: must be at least 1"),
        ({"whole": 9}, "whole: must be below 9"),
        ({"whole": "x"}, "whole: must be a whole number, such as 20000, 1e6 or 20M"),
        ({"part": 0}, "part: must be above 0"),
        ({"part": 2}, "part: must be at most 1"),
        ({"part": float("nan")}, "part: must be a finite number"),
        ({"names": []}, "names: must have at least 1 entry, found 0"),
        ({"names": "a"}, "names: must be a list, such as [1, 2]"),
        ({"code": "xyz"}, "code: must match ^[a-f]+$"),
        ({"code": "aaaa"}, "code: must have at most 3 characters"),
        ({"even": 3}, "even: must be a multiple of 2"),
        ({"even": 8}, "even: eight is taken"),
        ({"odd": 3}, "odd: is not a known key"),
    ],
)
def test_each_kind_of_error_in_our_words(given, said):
    with pytest.raises(ValidationError) as error:
        _Document.model_validate(given)
    assert all_problems(error.value) == [said]


def test_counted():
    assert [counted(n, "file") for n in (0, 1, 2, 1200)] == ["0 files", "1 file", "2 files", "1,200 files"]
    assert counted(2, "entry") == "2 entries"
