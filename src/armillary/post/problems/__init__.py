"""Parametric generators of problems with computed answers, one family per file, each with its own reader."""

# Each module registers its family.
from armillary.post.problems import (  # noqa: F401
    average,
    backwards,
    bases,
    calendar,
    clock,
    conversion,
    discount,
    expression,
    largest,
    linear,
    listcode,
    ordering,
    purchase,
    remainder,
    sequence,
    sets,
    sorting,
    successor,
    tally,
    textcode,
    travel,
    truthtellers,
)
from armillary.post.problems.family import (
    LANGUAGES,
    LEVELS,
    Family,
    Language,
    Problem,
    family_names,
    family_of,
    is_held_out,
    register_family,
)

__all__ = [
    "LANGUAGES",
    "LEVELS",
    "Family",
    "Language",
    "Problem",
    "family_names",
    "family_of",
    "is_held_out",
    "register_family",
]
