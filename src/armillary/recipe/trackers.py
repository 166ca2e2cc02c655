"""The trackers that a recipe or a large run also reports to; they change no number, no id and no outcome.

A document names a tracker by its key, with or without options, as in ``trackers: {mlflow: {experiment: mine}}``.
Secrets are not part of it: the packages read them from the environment.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from armillary.recipe.errors import FieldError
from armillary.recipe.names import check_path
from armillary.recipe.shapes import Document

_SQLITE = "sqlite:///"
# Characters that MLflow, Weights & Biases and trackio all take in the name of a group of runs.
_NAME = re.compile(r"[\w][\w .-]{0,99}")


def _name(text: str) -> str:
    if not _NAME.fullmatch(text):
        raise ValueError("give up to 100 letters, digits, blanks, '.', '_' and '-', with a letter or digit first")
    return text


PlaceText = Annotated[str, AfterValidator(check_path)]
GroupName = Annotated[str, AfterValidator(_name)]


class TensorBoardTracker(Document):
    """Event files, one folder per run, in ``folder`` (default: ``tensorboard`` in the results)."""

    folder: PlaceText | None = None


class MlflowTracker(Document):
    """An ``experiment`` of the tracking server ``uri`` (default: MLFLOW_TRACKING_URI, else a file in the results)."""

    uri: str | None = Field(default=None, min_length=1)
    experiment: GroupName | None = None

    @model_validator(mode="after")
    def _without_secrets(self) -> Self:
        if self.uri is not None and re.search(r"://[^/@]+@", self.uri):
            raise FieldError(
                "holds a user or a password; leave them out, and set MLFLOW_TRACKING_USERNAME and "
                "MLFLOW_TRACKING_PASSWORD in the environment",
                "uri",
            )
        return self


class WandbTracker(Document):
    """A ``project`` of Weights & Biases: in ``folder`` (``offline``, for ``wandb sync``), or sent (``online``)."""

    project: GroupName | None = None
    entity: GroupName | None = None
    folder: PlaceText | None = None
    mode: Literal["offline", "online"] = "offline"


class TrackioTracker(Document):
    """A ``project`` of trackio in ``folder`` (default: TRACKIO_DIR, else ``trackio`` in the results)."""

    project: GroupName | None = None
    folder: PlaceText | None = None


class Trackers(Document):
    """The trackers in use: those whose key is given."""

    later: ClassVar[tuple[str, ...]] = ("tensorboard", "mlflow", "wandb", "trackio")

    tensorboard: TensorBoardTracker | None = None
    mlflow: MlflowTracker | None = None
    wandb: WandbTracker | None = None
    trackio: TrackioTracker | None = None

    @model_validator(mode="before")
    @classmethod
    def _key_alone(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {name: {} if options is None else options for name, options in value.items()}

    def beside(self, folder: Path) -> Trackers:
        """The same with relative places resolved against ``folder``."""
        changed: dict[str, Any] = {}
        for name in ("tensorboard", "wandb", "trackio"):
            options = getattr(self, name)
            if options is not None and options.folder is not None:
                place = os.path.normpath(folder / Path(options.folder).expanduser())
                changed[name] = options.model_copy(update={"folder": place})
        uri = self.mlflow.uri if self.mlflow is not None else None
        if self.mlflow is not None and uri is not None and uri.startswith(_SQLITE):
            place = f"{_SQLITE}{os.path.normpath(folder / uri.removeprefix(_SQLITE))}"
            changed["mlflow"] = self.mlflow.model_copy(update={"uri": place})
        return self.model_copy(update=changed)
