"""A finished workspace whose runs are trained in this process, in seconds."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from armillary.corpus import Corpus
from armillary.launch.workers import worker as workers
from armillary.launch.workers.messages import Answer, Message
from armillary.launch.workers.pool import Worker, WorkerExecutor
from armillary.path import Evidence, Workspace
from armillary.recipe import CorpusSpec, Recipe
from armillary.store import Store

SETTINGS = {
    "name": "tiny",
    "target": {"voyage": 0.7, "code": 0.3},
    "model": {"depth": 2},
    "families": [{"name": "base", "width_per_layer": 8, "head_dim": 8}],
    "training": {"tokens": 2560, "context_length": 16, "batch_sequences": 8, "seeds": [1, 2], "precision": "fp32"},
    "study": {
        "mixture": {"depth": 1, "runs": 8, "tokens": 1280, "candidates": 1, "confirm_seeds": 2},
        "anneal": {"depth": 1, "tokens": 1280, "shares": [0.2, 0.4], "shapes": ["linear"], "seeds": 2},
        "ladder": {"depths": [1, 2], "tokens": 1920, "fractions": [0.4, 0.7, 1.0], "families": ["base"]},
    },
    "validation_windows": 4,
}


class InProcess(WorkerExecutor):
    """The executor with one worker, which trains in this process when it is listened to."""

    n_workers, device = 1, "cpu"  # type: ignore[assignment]

    def __init__(self, store: Store, corpus: Path) -> None:
        super().__init__(store, corpus, 30.0, SimpleNamespace(value=0))

    def _start_workers(self) -> None:
        if not self._workers:
            self._workers.append(_Inbox())

    def _await_workers(self) -> None:
        self._start_workers()

    def _receive(self) -> list[tuple[Any, Answer]]:
        (worker,) = self._workers
        messages = iter([worker.inbox.pop(0)])
        said: list[tuple[Any, Answer]] = []

        def receive() -> Message:
            try:
                return next(messages)
            except StopIteration:
                raise EOFError from None

        workers.work(
            receive,
            lambda answer: said.append((worker, answer)),
            lambda: False,
            workers.WorkerOptions(self.corpus, self.store.folder, 30.0),
        )
        return said

    def _close(self) -> None:
        pass


class _Inbox(Worker):
    def __init__(self) -> None:
        super().__init__()
        self.inbox: list[Message] = []

    def send(self, message: Message) -> None:
        self.inbox.append(message)


class Here(Workspace):
    """A workspace that trains in this process."""

    def _executor(self, store: Store, corpus: Corpus) -> WorkerExecutor:
        return InProcess(store, corpus.path)


def finished_workspace(corpus: CorpusSpec, folder: Path) -> tuple[Here, Evidence]:
    """Train and publish all of ``SETTINGS`` in ``folder``, and close the store."""
    place = Here(Recipe.model_validate({**SETTINGS, "corpus": corpus.model_dump()}), folder, workers=1)
    evidence = place.report()
    evidence.store.close()
    return place, evidence


def quick_report(data: Any, path: Path, language: str) -> None:
    """In the place of ``write_report``: a file that takes no time."""
    path.write_text(f"{data.name} {language}")
