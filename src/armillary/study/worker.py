"""What a worker does: take messages from its inbox one after another, train or measure, and answer.

It knows nothing of how messages travel, and nothing of other workers. It works with one thread: a study trains as many
runs at once as there are cores, and one thread keeps a run's arithmetic independent of their number.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from armillary.recipe import RunSpec
from armillary.study.executor import Answer, Job, Message, Probe, Train

if TYPE_CHECKING:
    import torch

    from armillary.corpus import Corpus

_TELL_EVERY_S = 0.2


def work(
    receive: Callable[[], Message],
    answer: Callable[[Answer], None],
    stopping: Callable[[], bool],
    corpus: Path,
    store: Path,
    checkpoint_every_s: float,
    device_index: int,
) -> None:
    """The life of a worker, until ``receive`` raises EOFError.

    ``stopping`` is asked after every step, and before a run is begun; it may come true by itself, where whoever asked
    for the work is gone. ``store`` is the store's folder; ``device_index`` counts through the machine's accelerators,
    where it has any.
    """
    import torch

    from armillary.corpus import Corpus
    from armillary.train import default_device

    torch.set_num_threads(1)
    device = default_device()
    if device.type != "cpu":
        device = torch.device(device.type, device_index % torch.accelerator.device_count())
    opened = Corpus.open(corpus)
    while True:
        try:
            message = receive()
        except EOFError:
            return
        if isinstance(message, Train):
            for job in message.jobs:
                answer(_train(job, opened, store / "runs", checkpoint_every_s, device, answer, stopping))
        else:
            try:
                answer(Answer("measured", _measure(message, device)))
            except Exception as error:
                answer(Answer("unmeasured", f"{type(error).__name__}: {error}"))


def _train(
    job: Job,
    corpus: Corpus,
    runs: Path,
    checkpoint_every_s: float,
    device: torch.device,
    answer: Callable[[Answer], None],
    stopping: Callable[[], bool],
) -> Answer:
    """The outcome of one job; its steps are told on the way."""
    from armillary.train import BusyRunError, DivergedError, InterruptedRunError, Trunk, train_run

    run = job.spec.id
    told = 0.0

    def tell(step: int) -> None:
        nonlocal told
        now = time.monotonic()
        if now - told > _TELL_EVERY_S:
            told = now
            answer(Answer("step", step, run))

    while not stopping():
        try:
            result = train_run(
                job.spec,
                corpus,
                runs / run,
                trunk=Trunk(runs / job.trunk[0], job.trunk[1]) if job.trunk else None,
                keep=job.keep,
                checkpoint_every_s=checkpoint_every_s,
                device=device,
                progress=tell,
                stop=stopping,
            )
        except BusyRunError:
            # Another study trains it, or the last workers of one that was killed are still leaving.
            time.sleep(0.5)
        except InterruptedRunError as error:
            return Answer("stopped", str(error), run)
        except DivergedError as error:
            return Answer("diverged", str(error), run)
        except Exception as error:
            return Answer("failed", f"{type(error).__name__}: {error}", run)
        else:
            return Answer("done", result, run)
    return Answer("stopped", f"run {run} was stopped before its worker began with it", run)


def _measure(probe: Probe, device: torch.device) -> float:
    """Tokens per second of real training steps on random tokens."""
    import torch

    from armillary.model import Transformer
    from armillary.recipe import MixturePhase, OptimizerSpec, Schedule
    from armillary.train import build_optimizer, train_step

    spec = RunSpec(
        corpus="",
        model=probe.shape,
        context_length=probe.context_length,
        batch_sequences=probe.batch_sequences,
        steps=1,
        mixture=(MixturePhase(start_step=0, weights={"random": 1.0}),),
        schedule=Schedule(kind="constant"),
        optimizer=OptimizerSpec(lr=1e-4),
        seed=0,
        precision=probe.precision,  # type: ignore[arg-type]
    )
    model = Transformer(probe.shape)
    model.init_weights(0)
    model.to(device)
    optimizer = build_optimizer(model, spec)
    batch = torch.randint(probe.shape.vocab_size, (probe.batch_sequences, probe.context_length + 1), device=device)
    train_step(model, optimizer, spec, 0, batch)[0].item()
    begin, steps = time.perf_counter(), 0
    while time.perf_counter() - begin < probe.seconds:
        train_step(model, optimizer, spec, 0, batch)[0].item()
        steps += 1
    return steps * spec.batch_tokens / (time.perf_counter() - begin)
