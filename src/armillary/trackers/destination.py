"""Where a tracker writes: a folder or a server, and the group that its runs belong to."""

from __future__ import annotations

import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from pydantic import ValidationError

from armillary.recipe import (
    MlflowTracker,
    TensorBoardTracker,
    Trackers,
    TrackioTracker,
    UsageError,
    WandbTracker,
    first_problem,
)

NAMES = ("tensorboard", "mlflow", "wandb", "trackio", "csv")


@dataclass(frozen=True)
class Destination:
    """``place`` is a folder, or the tracking URI of MLflow; ``project`` groups runs where the tracker has groups.

    ``entity`` and ``online`` are of Weights & Biases. It holds no secrets: packages read these from the environment.
    """

    tracker: str
    place: str
    project: str
    entity: str | None = None
    online: bool = False

    def to_json(self) -> dict[str, Any]:
        """The fields."""
        return asdict(self)

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Self:
        """The destination with these fields."""
        return cls(**fields)


def destinations(wanted: Trackers, results: Path, name: str) -> list[Destination]:
    """The destinations of a document; ``results`` and ``name`` stand in for places and groups that it does not give."""
    found: list[Destination] = []
    group = _group(name)
    results = results.resolve()
    if wanted.tensorboard is not None:
        found.append(_tensorboard(wanted.tensorboard, results, group))
    if wanted.mlflow is not None:
        found.append(_mlflow(wanted.mlflow, results, group))
    if wanted.wandb is not None:
        found.append(_wandb(wanted.wandb, results, group))
    if wanted.trackio is not None:
        found.append(_trackio(wanted.trackio, results, group))
    return found


def chosen_destination(
    tracker: str, wanted: Trackers, results: Path, name: str, place: str | None = None, project: str | None = None
) -> Destination:
    """The destination of one tracker of ``NAMES``: ``place`` and ``project``, else as ``wanted`` says, else defaults.

    Raises:
        UsageError: there is no such tracker, or a value is not one that it takes.
    """
    if tracker not in NAMES:
        raise UsageError(f"--to {tracker}: not one of {', '.join(NAMES)}")
    if tracker == "csv":
        return Destination("csv", place or str(results.resolve() / "csv"), project or _group(name))
    options: dict[str, Any] = {}
    if (given := getattr(wanted, tracker)) is not None:
        options = given.model_dump(exclude_none=True)
    if place is not None:
        options["uri" if tracker == "mlflow" else "folder"] = place
    if project is not None:
        options["experiment" if tracker == "mlflow" else "project"] = project
    if tracker == "tensorboard":
        options.pop("project", None)
    try:
        only = Trackers.model_validate({tracker: options})
    except ValidationError as error:
        raise UsageError(f"{tracker}: {first_problem(error)}") from error
    return destinations(only.beside(Path.cwd()), results, name)[0]


def _group(name: str) -> str:
    """A name as every tracker takes it as the name of a group."""
    plain = re.sub(r"[^\w .-]", "_", name)[:100].strip()
    return plain if re.match(r"\w", plain) else f"runs {plain}".strip()


def _tensorboard(options: TensorBoardTracker, results: Path, group: str) -> Destination:
    return Destination("tensorboard", options.folder or str(results / "tensorboard"), group)


def _mlflow(options: MlflowTracker, results: Path, group: str) -> Destination:
    # A URI of the environment may hold a password, so it stays there.
    place = options.uri or ("" if os.environ.get("MLFLOW_TRACKING_URI") else f"sqlite:///{results / 'mlflow.db'}")
    return Destination("mlflow", place, options.experiment or group)


def _wandb(options: WandbTracker, results: Path, group: str) -> Destination:
    place = options.folder or os.environ.get("WANDB_DIR") or str(results)
    return Destination("wandb", place, options.project or group, options.entity, options.mode == "online")


def _trackio(options: TrackioTracker, results: Path, group: str) -> Destination:
    place = options.folder or os.environ.get("TRACKIO_DIR") or str(results / "trackio")
    return Destination("trackio", place, options.project or group)
