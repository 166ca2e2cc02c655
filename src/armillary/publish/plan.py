"""The plan of a transfer: the files, their target, and which of them the hub has.

The plan is sealed and written after every file, so a killed transfer repeats at most one file. It
stays after the end as a receipt. It never contains a token.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from armillary.recipe import DamagedFileError, read_sealed, write_sealed

FORMAT = 1
FILE = "plan.json"
_REMEDY = "remove it; files already on the hub are not sent again"


@dataclass
class PlannedFile:
    """A file of the publication: its name, bytes, SHA-256, and whether the hub has it."""

    name: str
    bytes: int
    sha256: str
    sent: bool = False


@dataclass
class Plan:
    """A transfer: the hub, its address, the repository and its branch (None: the default one), and the files.

    ``commit`` is the address of the commit that shows the files, and ``checked`` whether the hub's hashes were compared
    after it.
    """

    hub: str
    endpoint: str
    repo: str
    revision: str | None
    files: list[PlannedFile] = field(default_factory=list)
    commit: str | None = None
    checked: bool = False

    def to_json(self) -> dict[str, Any]:
        """The document of the plan."""
        return {"format": FORMAT, **asdict(self)}

    def write(self, path: Path) -> None:
        """Write the plan atomically."""
        write_sealed(path, self.to_json())

    def take_over(self, older: Plan) -> None:
        """Mark the files that ``older``, a plan for the same target, has sent with the same content."""
        if (self.hub, self.endpoint, self.repo) != (older.hub, older.endpoint, older.repo):
            return
        sent = {file.sha256 for file in older.files if file.sent}
        for file in self.files:
            file.sent = file.sha256 in sent
        if [(file.name, file.sha256) for file in self.files] == [(file.name, file.sha256) for file in older.files]:
            same_branch = self.revision == older.revision
            self.commit = older.commit if same_branch else None


def read_plan(path: Path) -> Plan | None:
    """The plan in ``path``; None if there is none.

    Raises:
        DamagedFileError: the plan is torn or edited.
        ForeignFileError: it has a newer format.
    """
    try:
        document = read_sealed(path, "plan of a publication", FORMAT, _REMEDY)
    except FileNotFoundError:
        return None
    try:
        return Plan(
            document["hub"],
            document["endpoint"],
            document["repo"],
            document["revision"],
            [PlannedFile(**file) for file in document["files"]],
            document["commit"],
            document["checked"],
        )
    except (KeyError, TypeError) as error:
        raise DamagedFileError(f"{path}: not a plan of a publication ({error}); {_REMEDY}") from error
