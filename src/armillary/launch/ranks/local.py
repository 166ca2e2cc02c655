"""Ranks on this machine, started and watched by PyTorch's elastic agent.

A rank that dies has the agent end the others and start all of them again, which resume from the last checkpoint. What a
run itself says (it diverged, was stopped, its folder is in use) is an outcome and no death: the rank hands it back as
a value, since trying again would give the same.

Signals stop at this process: it asks the ranks to stop by a byte that all of them can see, so that Ctrl-C, which a
terminal sends to all, and a signal to this process alone come to the same. The second one ends them at once. Ranks are
born with Ctrl-C blocked, since their first seconds go into imports; SIGTERM is what the agent ends them with.
"""

from __future__ import annotations

import _thread
import logging
import multiprocessing as mp
import os
import signal
import tempfile
import threading
import uuid
from collections.abc import Callable
from multiprocessing import resource_tracker
from typing import Any

import torch.distributed as dist
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous import RendezvousError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from armillary.model import prefer_large_pages
from armillary.recipe import ArmillaryError, counted


def start_ranks(act: Callable[[Callable[[], bool]], Any], ranks: int, max_restarts: int) -> Any:
    """What ``act(stop)`` returns on the first of ``ranks`` ranks; ``act`` is called in each and must be picklable.

    Raises:
        ArmillaryError: one that ``act`` raised, or that a rank died more than ``max_restarts`` times.
    """
    stop = mp.get_context("spawn").RawValue("b", 0)

    def ask(number: int, frame: object) -> None:
        if stop.value:
            raise KeyboardInterrupt
        stop.value = 1

    done = threading.Event()

    def listen() -> None:
        while not done.is_set():
            if signal.sigtimedwait({signal.SIGINT}, 0.2) is not None:
                _thread.interrupt_main(signal.SIGTERM)

    prefer_large_pages()
    # PyTorch shares one store over all starts, in which a rank finds the addresses of ranks that are dead.
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    resource_tracker.ensure_running()  # started later it would unblock what is blocked here
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    threading.Thread(target=listen, daemon=True).start()
    try:
        with tempfile.TemporaryDirectory() as logs:
            config = LaunchConfig(
                min_nodes=1,
                max_nodes=1,
                nproc_per_node=ranks,
                run_id=uuid.uuid4().hex,
                rdzv_backend="c10d",
                rdzv_endpoint="localhost:0",
                # one node only: on an overloaded machine a late keep-alive means nothing
                rdzv_configs={"keep_alive_max_attempt": 720},
                max_restarts=max_restarts,
                monitor_interval=0.1,
                signals_to_handle="SIGHUP",  # the others are ours
                logs_specs=DefaultLogsSpecs(log_dir=logs),
            )
            outcomes = elastic_launch(config, _be_rank)(act, stop, os.getpid())
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        how = f"signal {-failure.exitcode}" if failure.exitcode < 0 else f"exit code {failure.exitcode}"
        said = failure.message["message"] if isinstance(failure.message, dict) else failure.message
        again = f", and again after {counted(max_restarts, 'restart')}" if max_restarts else ""
        last = (said.strip().splitlines() or ["nothing"])[-1]
        raise ArmillaryError(
            f"rank {rank} died ({how}){again}; its last words: {last}; what the last checkpoint holds is kept, and the "
            "same command resumes there"
        ) from error
    except SignalException as error:
        raise ArmillaryError(
            f"stopped by {error.sigval.name}; the same command resumes from the last checkpoint"
        ) from error
    except (RendezvousError, dist.DistError, OSError) as error:
        raise ArmillaryError(f"{ranks} ranks could not be started on this machine: {error}") from error
    finally:
        done.set()
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in before.items():
            signal.signal(number, handler)
    outcome = outcomes[0]
    if isinstance(outcome, ArmillaryError):
        raise outcome
    return outcome


def _be_rank(act: Callable[[Callable[[], bool]], Any], stop: Any, parent: int) -> Any:
    try:
        return act(lambda: bool(stop.value) or os.getppid() != parent)
    except ArmillaryError as error:
        return error
