"""How a run ends without a result."""

import torch.distributed as dist

from armillary.recipe import ArmillaryError


class BusyRunError(ArmillaryError):
    """Another process trains in the run's folder."""


class DivergedError(ArmillaryError):
    """The loss became infinite or not a number."""


class InterruptedRunError(ArmillaryError):
    """The run was asked to stop; a checkpoint of its last step is written."""


class LostStepError(ArmillaryError):
    """A step or the weights are wrong for a cause that is not the run's; it continues from its last checkpoint."""


class NotFiniteError(LostStepError):
    """The loss or the gradient norm of a step is not finite; the step was not taken."""

    def __init__(self, step: int, loss: float, norm: float) -> None:
        self.step, self.what = step, f"the loss is {loss} and the gradient norm {norm}"
        super().__init__(f"at step {step} {self.what}")


def lost_connection(error: Exception) -> bool:
    """Whether ``error`` says that another rank is gone or out of reach."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))
