"""Records some steps with PyTorch's profiler: a trace per rank in the run's folder, for chrome://tracing or Perfetto.

Operators of the device are recorded if PyTorch's profiler supports it. Recording slows the steps down but does not
change any number.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from armillary.files import aside
from armillary.recipe import UsageError
from armillary.train.writing import writing

if TYPE_CHECKING:
    from armillary.train.loop import Run


class Profile:
    """Records ``steps`` steps after step ``first`` into ``profile-rank-N.json``.

    Raises:
        UsageError: ``first`` or ``steps`` is below 1.
    """

    def __init__(self, first: int, steps: int = 3) -> None:
        if first < 1 or steps < 1:
            raise UsageError(f"profile: first ({first}) and steps ({steps}) must be at least 1")
        self.first, self.steps = first, steps
        self._recording: torch.profiler.profile | None = None

    def due(self, step: int) -> bool:
        """Before the first recorded step and after the last."""
        return step in (self.first, self.first + self.steps)

    def act(self, run: Run[Any]) -> None:
        """Begin to record, or write the trace.

        Raises:
            ArmillaryError: it could not be written.
        """
        if run.step == self.first:
            self._recording = torch.profiler.profile()
            self._recording.start()
        elif self._recording is not None:  # otherwise the run was resumed in between
            self._recording.stop()
            path = run.folder / f"profile-rank-{run.world.rank}.json"
            hidden = aside(path)
            try:
                with writing(path):
                    self._recording.export_chrome_trace(str(hidden))
                    hidden.replace(path)
            finally:
                hidden.unlink(missing_ok=True)
            self._recording = None
