"""Computes the validation loss of every domain and adds it to the row of the last step."""

from __future__ import annotations

import math
import time
from functools import partial
from typing import TYPE_CHECKING, Any

from armillary.recipe import RunSpec
from armillary.train.engines import validate

if TYPE_CHECKING:
    from armillary.train.loop import Run


class Validate:
    """Due at the steps of ``spec.validation``, and after the last step."""

    def __init__(self, spec: RunSpec) -> None:
        self.spec = spec

    def due(self, step: int) -> bool:
        """Whether the loss is computed after ``step`` steps."""
        return self.spec.validation.due(step, self.spec.steps)

    def act(self, run: Run[Any]) -> None:
        """Compute the loss, unless the row has it.

        Raises:
            DivergedError: it is not finite.
        """
        if any(key.startswith("validation/") for key in run.metrics.last):
            return
        begin = time.perf_counter()
        spec = self.spec.during(run.step - 1)
        for domain, (loss, bits) in validate(partial(run.engine.entropy, run.step - 1), spec, run.corpus).items():
            if not math.isfinite(loss):  # the last update may have broken the model
                run.diverged(run.step, f"the validation loss on '{domain}' is {loss}")
            run.metrics.annotate({f"validation/{domain}/loss": loss, f"validation/{domain}/bits_per_byte": bits})
        run.reporter.write("validation", run.step, time.perf_counter() - begin)
