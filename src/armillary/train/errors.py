"""How a run ends without a result."""

from armillary.recipe import ArmillaryError


class BusyRunError(ArmillaryError):
    """Another process trains in the run's folder."""


class DivergedError(ArmillaryError):
    """The loss became infinite or not a number."""


class InterruptedRunError(ArmillaryError):
    """The run was asked to stop; a checkpoint of its last step is written."""
