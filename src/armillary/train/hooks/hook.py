"""The protocol of a behaviour of the training loop.

The loop calls ``due`` after each step. If a hook is due, the loop fetches the losses and calls ``act``. ``due`` is a
pure function of the step, so all ranks call the same hooks, and ``act`` may communicate. A condition that can differ
between ranks, such as the clock or a signal, is a *wish*. The ranks vote, and if any rank wished, all call the hook one
step later (see `world`).

A resumed run calls the hooks that are due at its checkpoint's step again, because the checkpoint was written before
they acted. So a hook acts at least once for each step at which it is due, and acting twice must be harmless.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn, Protocol, runtime_checkable

from armillary.recipe import ArmillaryError, DamagedFileError, ForeignFileError, UsageError
from armillary.train.errors import DivergedError, InterruptedRunError, LostStepError, lost_connection

if TYPE_CHECKING:
    from armillary.train.loop import Run


class Hook(Protocol):
    """A behaviour of the training loop."""

    def due(self, step: int) -> bool:
        """Whether the hook acts after ``step`` steps; pure, and the same on all ranks."""

    def act(self, run: Run[Any]) -> None:
        """Act after step ``run.step``; an error ends the run on all ranks and names the hook."""


@runtime_checkable
class Voted(Protocol):
    """A hook that is also due if any rank wishes it."""

    def wish(self) -> bool:
        """Whether this rank wishes the hook to act; called once a step."""


def is_due(hook: Hook, step: int) -> bool:
    """``hook.due(step)``; raises as ``call_hook``."""
    try:
        return hook.due(step)
    except Exception as error:
        _raise_named(hook, step, error)


def wishes(hook: Hook, step: int) -> bool:
    """Whether the hook wishes to act after ``step`` steps; raises as ``call_hook``."""
    try:
        return isinstance(hook, Voted) and hook.wish()
    except Exception as error:
        _raise_named(hook, step, error)


def call_hook(hook: Hook, run: Run[Any]) -> None:
    """Call ``hook.act``, and name the hook in its errors.

    Raises:
        DivergedError, InterruptedRunError: as the hook raised them; both are outcomes of the run.
        ArmillaryError: any other error of the hook, with its name and the step.
    """
    try:
        hook.act(run)
    except Exception as error:
        _raise_named(hook, run.step, error)


def _raise_named(hook: Hook, step: int, error: Exception) -> NoReturn:
    # a lost connection means that another rank has died, so it is not an error of the hook
    if isinstance(error, DivergedError | InterruptedRunError | LostStepError) or lost_connection(error):
        raise error
    kinds = (UsageError, DamagedFileError, ForeignFileError)
    kind = next((kind for kind in kinds if isinstance(error, kind)), ArmillaryError)
    message = str(error) if isinstance(error, ArmillaryError) else f"{type(error).__name__}: {error}"
    raise kind(f"hook {type(hook).__name__} after step {step}: {message}") from error
