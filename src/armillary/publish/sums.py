"""``SHA256SUMS``: the checksums of a published folder, in the form that ``sha256sum --check`` reads."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from armillary.publish.ledger import sha256
from armillary.recipe import ArmillaryError, DamagedFileError

SUMS = "SHA256SUMS"
_LINE = re.compile(r"([0-9a-f]{64})  (?! )(.+)")
_REMEDY = "fetch the folder again, or publish the model again"


def sums(digests: Mapping[str, str]) -> str:
    """The text of ``SHA256SUMS`` for ``digests`` (name: SHA-256)."""
    return "".join(f"{digest}  {name}\n" for name, digest in sorted(digests.items()))


def check_sums(folder: Path) -> dict[str, str]:
    """The SHA-256 of every file that ``SHA256SUMS`` in ``folder`` names, after comparing each; empty without it.

    Raises:
        DamagedFileError: the file, or a file that it names, is torn, missing or changed; one line per file.
    """
    path = folder / SUMS
    if not path.exists():
        return {}
    try:
        rows = [_LINE.fullmatch(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise DamagedFileError(f"{path}: cannot be read ({error}); {_REMEDY}") from error
    wanted = {row[2]: row[1] for row in rows if row is not None}
    if not wanted or len(wanted) != len(rows):
        raise DamagedFileError(f"{path}: has lines that are not checksums; {_REMEDY}")
    problems = []
    for name, recorded in wanted.items():
        try:
            found = sha256(folder / name)
        except ArmillaryError as error:
            problems.append(f"{error}; {_REMEDY}")
            continue
        if found != recorded:
            problems.append(
                f"{folder / name}: was changed or damaged after publication: its SHA-256 is {found}, and {SUMS} has "
                f"{recorded}; {_REMEDY}"
            )
    if problems:
        raise DamagedFileError("\n".join(problems))
    return wanted
