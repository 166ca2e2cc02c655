"""trackio: a run with the id of the Armillary run in the SQLite file of a project.

Rows go into that file in one transaction per portion, through trackio's own storage layer, which its dashboard reads
(tested with 0.43). `trackio.log` would start a server and hold rows in a thread.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from armillary.recipe import UsageError
from armillary.trackers.destination import Destination
from armillary.trackers.source import About, Row, State
from armillary.trackers.writers.writer import Writer


class TrackioWriter(Writer):
    """A run of a project in the folder ``place``."""

    def __init__(self, about: About, where: Destination) -> None:
        os.environ["TRACKIO_DIR"] = where.place  # read once, when the package is imported
        from trackio import sqlite_storage

        if Path(sqlite_storage.TRACKIO_DIR) != Path(where.place):
            raise UsageError(
                f"trackio was already used with {sqlite_storage.TRACKIO_DIR} in this process; write to one folder at "
                "a time"
            )
        Path(where.place).mkdir(parents=True, exist_ok=True)
        self._storage, self._about, self._project = sqlite_storage.SQLiteStorage, about, where.project
        self._storage.validate_project_name(where.project)
        self.last = int(self._storage.get_max_step_for_run(where.project, run_id=about.run) or 0)

    def write(self, rows: Sequence[Row]) -> None:
        """Add the rows in one transaction."""
        self._storage.bulk_log(
            project=self._project,
            run=self._about.name,
            metrics_list=[dict(row.values) for row in rows],
            steps=[row.step for row in rows],
            timestamps=[datetime.fromtimestamp(row.time_s, UTC).isoformat() for row in rows],
            config=self._about.config,
            run_id=self._about.run,
        )
        self.last = rows[-1].step

    def close(self, state: State) -> None:
        """Nothing is held open."""
