"""The work of a worker: take messages from its inbox one by one, train or measure, and answer.

The caller provides the transport. A worker computes with one thread: a study trains one run per core, and with one
thread a run's arithmetic does not depend on the number of cores.
"""

from __future__ import annotations

import logging
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from armillary.launch.workers.messages import Answer, Failure, Job, Message, Probe, Train
from armillary.recipe import RunSpec

if TYPE_CHECKING:
    import torch

    from armillary.corpus import Corpus
    from armillary.recipe import RunResult
    from armillary.train import Trunk

_TELL_EVERY_S = 0.2


@dataclass(frozen=True)
class WorkerOptions:
    """The setup of a worker: the folders of corpus and store, seconds between checkpoints, and its device.

    ``device_index`` is the index among the machine's accelerators, if it has any.
    """

    corpus: Path
    store: Path
    checkpoint_every_s: float
    device_index: int = 0


@dataclass(frozen=True)
class _Work:
    """A running worker, with open corpus and chosen device."""

    corpus: Corpus
    runs: Path
    checkpoint_every_s: float
    device: torch.device
    answer: Callable[[Answer], None]
    stopping: Callable[[], bool]


def work(
    receive: Callable[[], Message],
    answer: Callable[[Answer], None],
    stopping: Callable[[], bool],
    options: WorkerOptions,
) -> None:
    """Answer messages until ``receive`` raises EOFError.

    ``stopping`` is called after every step and before a run begins; it also becomes true when the requesting process
    has died.
    """
    import torch

    from armillary.corpus import Corpus
    from armillary.model import keep_freed_memory
    from armillary.train import default_device

    torch.set_num_threads(1)
    device = default_device()
    if device.type != "cpu":
        device = torch.device(device.type, options.device_index % torch.accelerator.device_count())
    else:
        keep_freed_memory()
    at: _Work | None = None
    while True:
        try:
            message = receive()
        except EOFError:
            return
        if isinstance(message, Train):
            left = list(message.jobs)
            try:
                if at is None:
                    corpus = Corpus.open(options.corpus)
                    at = _Work(corpus, options.store / "runs", options.checkpoint_every_s, device, answer, stopping)
            except Exception as error:  # answer for each run, since a dead worker could not name the cause
                for job in left:
                    answer(_answer(job.spec.id, error))
                continue
            if message.members > 1:
                left = _train_stack(message, at)
            for job in left:
                answer(_train(job, at))
        else:
            try:
                answer(Answer("measured", _measure(message, device)))
            except Exception as error:
                answer(Answer("unmeasured", f"{type(error).__name__}: {error}"))


def _train_stack(message: Train, at: _Work) -> list[Job]:
    """Answer jobs that are trained as one program; return those that must be trained alone."""
    from armillary.train import Assignment, BusyRunError, stack_capacity, train_fleet

    left = {job.spec.id: job for job in message.jobs}
    members = [Assignment(job.spec, at.runs / job.spec.id, _trunk(job, at.runs), job.keep) for job in message.jobs]
    reported: dict[str, float] = {}
    # With this many runs, one progress message per run at the usual rate would flood the queue.
    tell_every_s = _TELL_EVERY_S * max(1.0, message.members / 4)

    def tell(run: str, step: int) -> None:
        now = time.monotonic()
        if now - reported.get(run, 0.0) > tell_every_s:
            reported[run] = now
            at.answer(Answer("step", step, run))

    try:
        outcomes = train_fleet(
            members,
            at.corpus,
            stack_capacity(members[0].spec, message.members, at.device),
            checkpoint_every_s=at.checkpoint_every_s,
            device=at.device,
            progress=tell,
            stop=lambda run: at.stopping(),
        )
        for run, outcome in outcomes:
            if not isinstance(outcome, BusyRunError):
                del left[run]
                at.answer(_answer(run, outcome))
    except Exception:
        # The stack failed, usually for lack of memory: each run resumes alone from its last checkpoint.
        logging.getLogger(__name__).warning("a stack of runs failed; the runs are trained alone", exc_info=True)
    return list(left.values())


def _answer(run: str, outcome: RunResult | Exception) -> Answer:
    from armillary.train import InterruptedRunError

    match outcome:
        case InterruptedRunError():
            return Answer("stopped", str(outcome), run)
        case Exception():
            failure = Failure.of(run, outcome)
            return Answer(failure.status, failure.error, run)
    return Answer("done", outcome, run)


def _trunk(job: Job, runs: Path) -> Trunk | None:
    from armillary.train import Trunk

    return Trunk(runs / job.trunk[0], job.trunk[1]) if job.trunk else None


def _train(job: Job, at: _Work) -> Answer:
    """The outcome of one job; reports finished steps meanwhile."""
    from armillary.train import BusyRunError, train_run

    run = job.spec.id
    reported = 0.0

    def tell(step: int) -> None:
        nonlocal reported
        now = time.monotonic()
        if now - reported > _TELL_EVERY_S:
            reported = now
            at.answer(Answer("step", step, run))

    while not at.stopping():
        try:
            result = train_run(
                job.spec,
                at.corpus,
                at.runs / run,
                trunk=_trunk(job, at.runs),
                keep=job.keep,
                checkpoint_every_s=at.checkpoint_every_s,
                device=at.device,
                progress=tell,
                stop=at.stopping,
            )
        except BusyRunError:
            # Another study is training it, or workers of a killed study are still running.
            time.sleep(0.5)
        except Exception as error:
            return _answer(run, error)
        else:
            return _answer(run, result)
    return Answer("stopped", f"run {run} was stopped before its worker began it", run)


def _measure(probe: Probe, device: torch.device) -> float:
    """Tokens per second of real training steps on random tokens."""
    import torch

    from armillary.corpus import Batch
    from armillary.model import Transformer
    from armillary.recipe import ArmillaryError, MixturePhase, OptimizerSpec, Schedule
    from armillary.train import Stack, build_optimizer, stack_capacity, train_step

    spec = RunSpec(
        corpus="",
        model=probe.shape,
        context_length=probe.context_length,
        batch_sequences=probe.batch_sequences,
        steps=1,
        mixture=(MixturePhase(start_step=0, weights={"random": 1.0}),),
        schedule=Schedule(kind="constant"),
        optimizer=OptimizerSpec(lr=1e-4, kind=probe.optimizer, z_loss=probe.z_loss),
        accumulation=probe.accumulation,
        seed=0,
        precision=probe.precision,  # type: ignore[arg-type]
    )
    size = (probe.batch_sequences, probe.context_length + 1)
    step: Callable[[], tuple[torch.Tensor, ...]]
    if probe.members == 1:
        model = Transformer(probe.shape)
        model.init_weights(0)
        model.to(device)
        optimizer = build_optimizer(model, spec)
        batch = torch.randint(probe.shape.vocab_size, size, device=device)
        step = partial(train_step, model, optimizer, spec, 0, Batch(batch))
    elif stack_capacity(spec, probe.members, device) == probe.members:
        stack = Stack(spec, probe.members, device)
        for row in range(probe.members):
            member = Transformer(probe.shape)
            member.init_weights(row)
            stack.put(row, member, build_optimizer(member, spec))
        batches = [Batch(torch.randint(probe.shape.vocab_size, size, device=device)) for _ in range(probe.members)]
        step = partial(stack.step, [(spec, 0)] * probe.members, batches)
    else:
        raise ArmillaryError(f"a stack of {probe.members} models does not fit in memory")
    step()[0].sum().item()
    begin, steps = time.perf_counter(), 0
    while time.perf_counter() - begin < probe.seconds:
        step()[0].sum().item()
        steps += 1
    return probe.members * steps * spec.batch_tokens / (time.perf_counter() - begin)


def device_name() -> str:
    """Name of the accelerator of this process if there is one, else of the CPU."""
    import torch

    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if accelerator is not None:
        return str(torch.get_device_module(accelerator).get_device_properties(0).name)
    # On Linux the standard library returns only "x86_64".
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
