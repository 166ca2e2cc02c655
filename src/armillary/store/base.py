"""The common base of a store's parts: its folder and its database."""

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
        """The folder of the run with this id."""
        return self.folder / "runs" / run

    @property
    def _place(self) -> str:
        return str(self.folder.absolute())


def iso_time(seconds: float) -> str:
    """Seconds since the epoch as ISO 8601 in UTC, to the millisecond."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")


def to_json(value: Any) -> Any:
    """``value`` after a round trip through JSON, as the database returns it."""
    return json.loads(json.dumps(value, allow_nan=False))
