"""Workers on a Ray cluster: one actor per core, or per share of an accelerator, on every node.

Ray places the actors and reports lost ones; the executor does the rest. The store's folder and the corpus are on a file
system that all nodes see at the same path; each node proves this before training (`proof`). Messages to an actor and
its answers go through numbered calls, one at a time (`_Slot.exchange`), so a call with a lost answer can be repeated.

A node that has only lost its connection may still be training when its runs go to others. This is safe:

- the run's folder is locked, so the second worker waits until the first has stopped;
- a worker without a message for ``LEASE_S`` stops its run with a checkpoint; after twice that time its process ends,
  even in the middle of a step;
- if a file server releases a dead node's lock too early, both workers write the same bytes, since a run is a pure
  function of its specification and files are renamed into place.

Trade-offs: runs of a lost node wait until Ray reports the node as lost (about 15 s), because moving them at every short
network failure would cost more. On a cluster that is full or grows on demand, actors wait in Ray's queue. Ray is an
optional package and is imported inside functions.
"""

from __future__ import annotations

import contextlib
import importlib.util
import math
import os
import queue
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import unquote, unquote_plus

from armillary.launch.workers.messages import Answer, Lost, Message, Train
from armillary.launch.workers.places import Place, register_place
from armillary.launch.workers.pool import Worker, WorkerExecutor
from armillary.launch.workers.proof import Proof, proof
from armillary.launch.workers.worker import WorkerOptions, device_name, work
from armillary.recipe import ArmillaryError, UsageError, counted
from armillary.store import Store
from armillary.store import secrets as secrets_of

LEASE_S = 60.0
# How long a study waits while no node has a slot for it.
PATIENCE_S = 600.0
_LOOK_EVERY_S = 2.0  # to look for nodes that joined or left
_POLL_S = 0.2
_GRACE_S = 5.0
_SETTLE_S = 20.0  # a throughput is measured once no further slot has appeared for this long
_OBJECT_STORE = 80 * 2**20  # bytes; nothing large goes through it
_ACCELERATORS = ("GPU", "NPU")  # Ray's names
_ADDRESSES = "ray (this machine's cluster) or ray://HOST:PORT"


def _ray() -> Any:
    """The package, imported on first use."""
    import ray

    return ray


def check_address(on: str) -> None:
    """Whether ``on`` is an address of a cluster and Ray is installed; imports nothing.

    Raises:
        UsageError: neither ``ray`` nor ``ray://HOST:PORT``, or Ray is not installed.
    """
    host, _, port = on.removeprefix("ray://").rpartition(":")
    if on != "ray" and not (on.startswith("ray://") and host and port.isdigit()):
        raise UsageError(f"--on {on}: unknown; give {_ADDRESSES}")
    needed = ("ray",) if on == "ray" else ("ray", "grpc")
    if not all(map(importlib.util.find_spec, needed)):
        raise UsageError(f"--on {on}: Ray is not installed; pip install 'armillary[ray]'")


class _Actor(Worker):
    """A slot of the cluster: its actor, the unsent messages, and the call in progress."""

    def __init__(self, actor: Any, node: str, where: str, device: str) -> None:
        super().__init__()
        self.actor = actor
        self.node = node
        self.where = where
        self.device = device
        self.outbox: list[Message] = []
        self.call: Any = None
        self.number = 0
        self.outgoing: tuple[list[Message], bool] = ([], False)

    def send(self, message: Message) -> None:
        self.outbox.append(message)

    def exchange(self, stop: bool) -> Any:
        """The call in progress; a new call sends the content of the outbox."""
        if self.call is None:
            self.number += 1
            self.outgoing, self.outbox = (self.outbox, stop), []
            self.again()
        return self.call

    def again(self) -> None:
        """Repeat the call: its answer was lost, or it never arrived."""
        self.call = self.actor.exchange.remote(self.number, *self.outgoing)


class RayExecutor(WorkerExecutor):
    """Workers on the Ray cluster at ``address``: ``ray://HOST:PORT``, or ``ray`` for the cluster of this machine.

    If this machine is in no cluster, ``ray`` starts a private one, which ends with the executor. A program that has
    called ``ray.init`` keeps its connection. ``workers`` is the number of slots. By default it is all cores of the
    cluster, or all its accelerators if it has any, including nodes that join later. If there are more workers than
    accelerators, each takes a share of one.
    """

    def __init__(
        self, store: Store, corpus: Path, address: str, workers: int | None = None, checkpoint_every_s: float = 30.0
    ) -> None:
        super().__init__(store, corpus.absolute(), checkpoint_every_s, SimpleNamespace(value=0))
        check_address(address)
        self._address = address
        self._asked_for = workers
        self._wanted = 0
        self._connected = False
        self._starting: dict[Any, Any] = {}  # the call that returns once an actor is up, and the actor
        self._refused: list[Any] = []
        self._looked = self._last_seen = 0.0
        self._why = ""
        self._device = ""
        self._undo = contextlib.ExitStack()

    @property
    def n_workers(self) -> int:
        self._connect()
        return self._wanted

    @property
    def device(self) -> str:
        if not self._workers and not self._device:
            self._await_workers()
        if self._workers:
            self._device = " + ".join(sorted({worker.device for worker in self._workers}))
        return self._device

    def _connect(self) -> None:
        """Connect to the cluster, test its nodes (`proof`), and count the slots; done once."""
        if self._connected:
            return
        _refuse_visible_password(self.store)
        if "ray" not in sys.modules or not _ray().is_initialized():
            self._reach()
            self._undo.callback(_ray().shutdown)
        ray = _ray()
        self._proof = self._undo.enter_context(proof(self.store.folder.absolute(), self.corpus))
        total = ray.cluster_resources()
        self._resource = next((name for name in _ACCELERATORS if total.get(name)), "CPU")
        nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get(self._resource)]
        self._check_nodes(nodes)
        slots = int(total.get(self._resource, 0))
        self._wanted = self._asked_for or slots
        share = 1.0 if self._wanted <= slots or not slots else 1 / math.ceil(self._wanted / slots)
        needs: dict[str, dict[str, Any]] = {"CPU": {"num_cpus": 1}, "GPU": {"num_gpus": share}}
        self._needs = needs.get(self._resource, {"resources": {self._resource: share}})
        self._last_seen = time.monotonic()
        self._connected = True

    def _reach(self) -> None:
        address = "auto" if self._address == "ray" else self._address
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
        inherited: dict[str, str | None] = {}
        if address == "auto" and not _in_a_cluster():
            address = "local"  # explicit, because Ray would otherwise try the address that a dead cluster left behind
            cores = max(len(os.sched_getaffinity(0)), self._asked_for or 0)
            options |= {"num_cpus": cores, "include_dashboard": False, "object_store_memory": _OBJECT_STORE}
            self._undo.enter_context(_environment(_only_ours()))
            # Disable Ray's usage reports, and keep the database's URL with its password private.
            inherited = {"ARMILLARY_DATABASE": None, "RAY_USAGE_STATS_ENABLED": "0"}
        try:
            with _environment(inherited):
                _ray().init(address, **options)
        except Exception as error:  # Ray raises no narrower exception if it cannot start
            raise UsageError(
                f"--on {self._address}: the cluster cannot be used: {str(error).strip().splitlines()[0]}; is it up "
                "(ray status), has it the same versions of Python and Ray, and is RAY_AUTH_MODE=token set if it needs "
                "a token?"
            ) from error

    def _check_nodes(self, nodes: list[dict[str, Any]]) -> None:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        ray = _ray()
        check = ray.remote(_check_node)
        calls = {}
        for node in nodes:
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            options = check.options(num_cpus=0, scheduling_strategy=there, max_retries=0)
            calls[node["NodeManagerAddress"], node["NodeID"]] = options.remote(self._proof)
        for (where, node), call in calls.items():
            try:
                problem = ray.get(call, timeout=120) or self._proof.problem_here(node)
            except ray.exceptions.RayTaskError as error:
                problem = f"{error.cause!r}; is the same version of Armillary installed there?"
            except ray.exceptions.RayError as error:
                problem = f"it does not respond ({type(error).__name__})"
            if problem is not None:
                raise UsageError(f"node {where}: {problem}")

    def _start_workers(self) -> None:
        self._connect()
        now = time.monotonic()
        if self._workers:
            self._last_seen = now
        elif now - self._last_seen > PATIENCE_S:
            raise ArmillaryError(
                f"no node had a free {self._resource} for {PATIENCE_S / 60:.0f} minutes; every run has its latest "
                "checkpoint: run the same command again when one is free"
            )
        if now - self._looked < _LOOK_EVERY_S:
            return
        self._looked = now
        ray = _ray()
        if self._asked_for is None:
            with _lost_connection():
                self._wanted = int(ray.cluster_resources().get(self._resource, 0))
        there = len(self._workers) + len(self._refused)
        for call in list(self._starting)[max(0, self._wanted - there) :]:  # their nodes have left
            ray.kill(self._starting.pop(call))
        with _lost_connection():
            slot = ray.remote(_Slot).options(**{"num_cpus": 0, **self._needs})
            for _ in range(self._wanted - there - len(self._starting)):
                actor = slot.remote(self._proof.store, self.corpus, self.checkpoint_every_s)
                self._starting[actor.begin.remote(self._proof)] = actor

    @property
    def _word(self) -> str:
        words = [] if self._workers else [f"waiting for a free {self._resource}"]
        if self._refused:
            words.append(f"{counted(len(self._refused), 'slot')} refused: {self._why}")
        return "; ".join(words)

    def _await_workers(self) -> None:
        """Wait for all slots, or until no further slots appear."""
        self._start_workers()
        came = time.monotonic()
        while self._starting and time.monotonic() - came < (_SETTLE_S if self._workers else PATIENCE_S):
            if self._receive_starts(_POLL_S):
                came = time.monotonic()
        if not self._workers:
            raise ArmillaryError(f"the cluster has no free slot; {self._word}")

    def _receive_starts(self, timeout_s: float) -> bool:
        """Add the actors that are up; return whether there was one."""
        ray = _ray()
        with _lost_connection():
            ready, _ = ray.wait(list(self._starting), num_returns=len(self._starting), timeout=timeout_s)
        for call in ready:
            actor = self._starting.pop(call)
            try:
                node, where, device, problem = ray.get(call)
            except ray.exceptions.RayError:
                self._looked = 0.0  # it died before it was up; start another
                continue
            problem = problem or self._proof.problem_here(node)
            if problem is None:
                self._workers.append(_Actor(actor, node, where, device))
            else:
                self._refused.append(actor)  # keep it in its slot, so that Ray places no other actor there
                self._why = f"node {where}: {problem}"
        return bool(ready)

    def _receive(self) -> list[tuple[_Actor, Answer | Lost]]:
        ray = _ray()
        if self._starting:
            self._receive_starts(0)
        if not self._workers:
            time.sleep(_POLL_S)
            return []
        received: list[tuple[_Actor, Answer | Lost]] = []
        with _lost_connection():
            calls = {worker.exchange(bool(self._stop.value)): worker for worker in self._workers}
            ray.wait(list(calls), num_returns=1, timeout=0.5)
            ready, _ = ray.wait(list(calls), num_returns=len(calls), timeout=0)
            for call in ready:
                worker = calls[call]
                try:
                    answers = ray.get(call)
                except ray.exceptions.ActorUnavailableError:
                    worker.again()  # Ray has not decided yet whether it is lost
                except ray.exceptions.RayError as error:
                    received.append((worker, self._lost(worker, error)))
                else:
                    worker.call = None
                    received.extend((worker, answer) for answer in answers)
        return received

    def _lost(self, worker: _Actor, error: Exception) -> Lost:
        ray = _ray()
        self._workers.remove(worker)
        self._looked = 0.0
        with contextlib.suppress(Exception):
            ray.kill(worker.actor)
        if any(node["Alive"] for node in ray.nodes() if node["NodeID"] == worker.node):
            how = str(error).strip().splitlines()[-1]
            return Lost(f"on node {worker.where}: {how}")
        return Lost(f"node {worker.where} was lost", blames_run=False)

    def _close(self) -> None:
        try:
            if self._connected:
                ray = _ray()
                end = time.monotonic() + _GRACE_S
                with contextlib.suppress(ArmillaryError):
                    while any(worker.stacks for worker in self._workers) and time.monotonic() < end:
                        for worker, answer in self._receive():
                            if isinstance(answer, Lost):
                                worker.stacks.clear()
                            elif answer.kind not in ("step", "measured", "unmeasured"):
                                worker.finish(answer.run)
                for actor in [*(w.actor for w in self._workers), *self._starting.values(), *self._refused]:
                    with contextlib.suppress(Exception):  # the cluster may have ended
                        ray.kill(actor)
        finally:
            self._starting.clear()
            self._refused.clear()
            self._undo.close()
            self._connected = False


def _check_node(given: Proof) -> str | None:
    """The problem with the node that this runs on, or None."""
    return given.problem_there(_ray().get_runtime_context().get_node_id())


class _Slot:
    """The actor: a thread that works, and calls that fetch its messages meanwhile."""

    def __init__(self, store: Path, corpus: Path, checkpoint_every_s: float) -> None:
        self._store, self._corpus = store, corpus
        self._checkpoint_every_s = checkpoint_every_s
        self._inbox: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._outbox: queue.SimpleQueue[Answer] = queue.SimpleQueue()
        self._heard = time.monotonic()
        self._stop = False
        self._open = 0  # unanswered runs and probes
        self._number = 0
        self._reply: list[Answer] = []

    def begin(self, given: Proof) -> tuple[str, str, str, str | None]:
        """Node, its address, the device, and the problem with the node; without a problem, the work begins."""
        problem = _check_node(given)
        if problem is None:
            self._thread = threading.Thread(target=self._work, daemon=True)
            self._thread.start()
            threading.Thread(target=self._watch, daemon=True).start()
        ray = _ray()
        return ray.get_runtime_context().get_node_id(), ray.util.get_node_ip_address(), device_name(), problem

    def exchange(self, number: int, messages: list[Message], stop: bool) -> list[Answer]:
        """Take messages and return answers, waiting briefly for the first; a repeated call gets the same reply."""
        self._heard = time.monotonic()
        if number == self._number:
            return self._reply
        if not self._thread.is_alive():
            raise RuntimeError("the worker's thread has ended")
        self._number, self._stop, self._reply = number, stop, []
        for message in messages:
            self._open += len(message.jobs) if isinstance(message, Train) else 1
            self._inbox.put(message)
        with contextlib.suppress(queue.Empty):
            self._reply.append(self._outbox.get(timeout=_POLL_S))
            while True:
                self._reply.append(self._outbox.get_nowait())
        self._open -= sum(answer.kind != "step" for answer in self._reply)
        return self._reply

    def _work(self) -> None:
        # Ray shows an actor only its own accelerator, so the index is 0.
        options = WorkerOptions(self._corpus, self._store, self._checkpoint_every_s)
        work(
            self._inbox.get,
            self._outbox.put,
            lambda: self._stop or time.monotonic() - self._heard > LEASE_S,
            options,
        )

    def _watch(self) -> None:
        """End the process if it is still in a run long after the executor's last call."""
        while True:
            time.sleep(1)
            if self._open and time.monotonic() - self._heard > 2 * LEASE_S:
                os._exit(1)


def _in_a_cluster() -> bool:
    """Whether this machine is in a Ray cluster; checked in a separate process, since importing Ray has side effects."""
    command = [sys.executable, "-m", "ray.scripts.scripts", "status"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


@cache
def _only_ours() -> dict[str, str | None]:
    """Settings for a Ray cluster that only this process and its children can use.

    Ray listens on all of a machine's addresses and cannot be limited to the loopback interface, so a token keeps others
    out. There is one token per process, because Ray reads it once, at import.

    Raises:
        UsageError: Ray is already imported.
    """
    if "RAY_AUTH_MODE" in os.environ:
        return {}  # set by the machine's administrator
    if "ray" in sys.modules:
        raise UsageError("--on ray: this program has imported ray already, so it must also call ray.init")
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}


@contextlib.contextmanager
def _environment(changes: dict[str, str | None]) -> Iterator[None]:
    """Temporarily change or remove environment variables."""

    def put(values: dict[str, str | None]) -> dict[str, str | None]:
        before = {name: os.environ.pop(name, None) for name in values}
        os.environ.update({name: value for name, value in values.items() if value is not None})
        return before

    before = put(changes)
    try:
        yield
    finally:
        put(before)


@contextlib.contextmanager
def _lost_connection() -> Iterator[None]:
    """Convert Ray's connection errors."""
    ray = _ray()
    try:
        yield
    except (ConnectionError, ray.exceptions.RaySystemError) as error:
        raise ArmillaryError(
            f"the connection to Ray was lost ({str(error).strip().splitlines()[0]}); every run has its latest "
            "checkpoint: run the same command again when the cluster is up"
        ) from error


def _refuse_visible_password(store: Store) -> None:
    """Refuse a password in the command line, which Ray shows to every node."""
    shown = [text for argument in sys.orig_argv for text in (argument, unquote(argument), unquote_plus(argument))]
    if any(secret in text for secret in secrets_of(store.engine.url) for text in shown):
        raise UsageError(
            "--database: with --on ray the whole cluster could read the password in this command; give the URL in "
            "the environment variable ARMILLARY_DATABASE instead"
        )


register_place("ray", Place(_ADDRESSES, check_address, RayExecutor))
