"""MLflow: one run per run in an experiment, found again by the tag ``armillary.run``.

Times of metrics come from the run's events, so a portion that is sent twice after a lost answer is the same to the
server, which keeps it once. A server may have stored part of a portion; what it has of each metric is read first.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Any

# These are read when the package is imported. By default it retries for minutes, and reports its use to its makers.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

from mlflow.entities import Metric, Param, RunTag
from mlflow.tracking import MlflowClient

from armillary.trackers.destination import Destination
from armillary.trackers.source import About, Row, State
from armillary.trackers.writers.writer import Writer, flat

RUN, COMPLETE = "armillary.run", "armillary.config"
_METRICS, _PARAMS = 900, 90  # in one request; servers take 1000 and 100
_LONGEST = 500  # characters of a parameter that every server takes
_STATES = {"running": "RUNNING", "done": "FINISHED", "diverged": "FAILED", "stopped": "KILLED", "interrupted": "KILLED"}


class MlflowWriter(Writer):
    """A run of the tracking server at ``place`` (empty: MLFLOW_TRACKING_URI)."""

    def __init__(self, about: About, where: Destination) -> None:
        self._client = MlflowClient(tracking_uri=where.place or None)
        self._run, self._state = self._open(about, where.project)
        stored = self._client.get_run(self._run).data.to_proto().metrics
        self._known = {metric.key: int(metric.step) for metric in stored}
        self.last = self._known.get("tokens", 0)

    def _open(self, about: About, project: str) -> tuple[str, str]:
        client = self._client
        experiment = client.get_experiment_by_name(project)
        if experiment is None:
            try:
                number = client.create_experiment(project)
            except Exception:  # another process has just made it
                experiment = client.get_experiment_by_name(project)
                if experiment is None:
                    raise
                number = experiment.experiment_id
        else:
            number = experiment.experiment_id
        found = client.search_runs([number], f"tags.`{RUN}` = '{about.run}'", max_results=1)
        if found:
            run = found[0]
        else:
            run = client.create_run(
                number,
                start_time=round(about.started_s * 1000),
                run_name=about.name,
                tags={RUN: about.run, **{f"armillary.{name}": value for name, value in about.tags.items()}},
            )
        if COMPLETE not in run.data.tags:
            params = [
                Param(metric_name(name), str(value)[:_LONGEST])
                for name, value in flat(about.config).items()
                if value is not None
            ]
            for begin in range(0, len(params), _PARAMS):
                client.log_batch(run.info.run_id, params=params[begin : begin + _PARAMS])
            client.log_batch(run.info.run_id, tags=[RunTag(COMPLETE, "whole")])
        return run.info.run_id, run.info.status

    def write(self, rows: Sequence[Row]) -> None:
        """Send the metrics that the server lacks; several requests if there are many."""
        waiting: list[Any] = []
        for row in rows:
            found = [
                Metric(key, float(value), round(row.time_s * 1000), row.step)
                for name, value in row.values.items()
                if row.step > self._known.get(key := metric_name(name), 0)
            ]
            if len(waiting) + len(found) > _METRICS:
                self._send(waiting)
                waiting = []
            waiting += found
        self._send(waiting)
        self.last = rows[-1].step

    def _send(self, metrics: list[Any]) -> None:
        if metrics:
            self._client.log_batch(self._run, metrics=metrics)
            self._known.update({metric.key: metric.step for metric in metrics})

    def close(self, state: State) -> None:
        """Set the run's status."""
        status = _STATES[state]
        if status == "RUNNING":
            if self._state != status:
                self._client.update_run(self._run, status=status)
        elif self._state != status:
            self._client.set_terminated(self._run, status=status)
        self._state = status


def metric_name(name: str) -> str:
    """A name as MLflow takes it: every other character becomes its number in hexadecimal between two ``-``."""
    plain = re.sub(r"[^\w.\-: /]", lambda found: f"-{ord(found[0]):X}-", name)
    parts = [{"": "-", ".": "-2E-", "..": "-2E--2E-"}.get(part, part) for part in plain.split("/")]
    return "/".join(parts)[:250]
