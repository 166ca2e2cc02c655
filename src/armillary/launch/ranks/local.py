"""Ranks on this machine, started and watched by PyTorch's elastic agent.

If a rank dies, the agent ends the others and restarts all of them from the last checkpoint. An outcome of the run
itself
(it diverged, was stopped, its folder is in use) is not a crash: the rank returns it as a value, since a restart would
give the same outcome.

Only this process handles signals. It requests a stop through a shared byte, so Ctrl-C, which a terminal sends to the
whole group, has the same effect as a signal to this process alone. A second signal ends the ranks at once. Ranks start
with Ctrl-C blocked, because they spend their first seconds on imports. The agent ends them with SIGTERM.
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
    """Call ``act(stop)``, which must be picklable, in each of ``ranks`` ranks; return the result of the first.

    Raises:
        ArmillaryError: raised by ``act``, or because a rank died more than ``max_restarts`` times.
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
    # PyTorch shares one store among all restarts, where a rank would find the addresses of dead ranks.
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    resource_tracker.ensure_running()  # starting it later would unblock the signals blocked here
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
                # one node only: a late keep-alive on an overloaded machine means nothing
                rdzv_configs={"keep_alive_max_attempt": 720},
                max_restarts=max_restarts,
                monitor_interval=0.1,
                signals_to_handle="SIGHUP",  # this module handles the others
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
            f"rank {rank} died ({how}){again}; its last output: {last}; the same command resumes from the last "
            "checkpoint"
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
