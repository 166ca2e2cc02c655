"""``SHA256SUMS``: the checksums of a published folder, in the format of ``sha256sum --check``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from armillary.publish.ledger import check_files
from armillary.recipe import DamagedFileError

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
        raise DamagedFileError(f"{path}: contains lines that are not checksums; {_REMEDY}")
    check_files(folder, wanted, SUMS, _REMEDY)
    return wanted
