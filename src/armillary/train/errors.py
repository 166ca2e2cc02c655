"""How a run ends without a result."""

import torch.distributed as dist

from armillary.recipe import ArmillaryError
from armillary.resilience import Verdict


class BusyRunError(ArmillaryError):
    """Another process is training in the run's folder."""


class DivergedError(ArmillaryError):
    """The loss became infinite or not a number."""


class InterruptedRunError(ArmillaryError):
    """A stop was requested; a checkpoint of the last step is written."""


class LostStepError(ArmillaryError):
    """A step or the weights are wrong for an external cause; the run continues from its last checkpoint."""


class BadStepError(LostStepError):
    """The loss or the gradient norm of a step is not finite, or its loss is a spike."""

    def __init__(self, step: int, verdict: Verdict) -> None:
        self.step, self.what, self.finite = step, verdict.what, verdict.finite
        super().__init__(f"at step {step} {self.what}")


def lost_connection(error: Exception) -> bool:
    """Whether ``error`` means that another rank has died or is unreachable."""
    of_gloo = "gloo" in str(error) or "Application timeout" in str(error)  # the latter after a timeout
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and of_gloo)
