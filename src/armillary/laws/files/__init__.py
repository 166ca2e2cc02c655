"""Law files: a fitted law as JSON under stable names, with the tables it was fitted to by their hashes."""

from armillary.laws.files.document import (
    FORMAT,
    VERSION,
    DamagedLawError,
    ForeignLawError,
    LawFile,
    OtherLawsWarning,
    Source,
    may_replace,
    read_law,
    source_of,
    write_law,
)
from armillary.laws.files.registry import LAWS

__all__ = [
    "FORMAT",
    "LAWS",
    "VERSION",
    "DamagedLawError",
    "ForeignLawError",
    "LawFile",
    "OtherLawsWarning",
    "Source",
    "may_replace",
    "read_law",
    "source_of",
    "write_law",
]
