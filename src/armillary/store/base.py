"""What every part of a store works with: its folder and its database."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from armillary.store.database import Database


class Base:
    """The folder of a store and its database; each part of `Store` adds the tables of one kind."""

    folder: Path
    database: Database

    def run_folder(self, run: str) -> Path:
        """Where the run of that id keeps its files."""
        return self.folder / "runs" / run

    @property
    def _place(self) -> str:
        return str(self.folder.absolute())


def iso_time(seconds: float) -> str:
    """Seconds since the epoch as ISO 8601 in UTC, to the millisecond."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")


def to_json(value: Any) -> Any:
    """``value`` as it comes back from the database, so that what is used is what is stored."""
    return json.loads(json.dumps(value, allow_nan=False))
