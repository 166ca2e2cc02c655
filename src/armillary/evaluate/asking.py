"""Models to ask, opened by the names that the command line has for them; their answers are kept and resumed from."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from armillary.generate import Answers, Backend, BackendOptions, Completion, Request, open_answers, open_backend
from armillary.recipe import UsageError

# Called with the name of a model, the answers that are there, and all that it is asked for at this stage.
Notice = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Asker:
    """A model to ask: ``complete`` returns the completions in the order of the requests.

    ``chat`` puts the prompt in the turns of a chat. Without it the turns are written as text, which is what a model
    without a chat template needs. ``identity`` is that of the backend.
    """

    complete: Callable[[Sequence[Request]], Sequence[Completion]]
    chat: bool = True
    identity: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Opening:
    """How models are opened and asked.

    Attributes:
        chat: ask in turns of a chat; else in plain text.
        folder: where answers are kept, so that a killed examination resumes; None keeps none.
        notice: called as answers come.
    """

    options: BackendOptions = field(default_factory=BackendOptions)
    engine: str | None = None
    chat: bool = True
    folder: Path | None = None
    notice: Notice = lambda model, done, total: None


@contextmanager
def opened(targets: Sequence[str], opening: Opening) -> Iterator[dict[str, Asker]]:
    """The models of ``targets`` by a short name each, closed at the end.

    Raises:
        UsageError: a target has no model, or two have the same name.
        ForeignFileError: the answers that are kept under this name are of another model.
    """
    with ExitStack() as stack:
        models: dict[str, Asker] = {}
        for target in targets:
            name = short_name(target)
            if name in models:
                raise UsageError(f"{target}: a model with the name {name} is already there; rename one")
            backend = stack.enter_context(closing(open_backend(target, opening.options, opening.engine)))
            answers = None
            if opening.folder is not None:
                opening.folder.mkdir(parents=True, exist_ok=True)
                path = opening.folder / f"{file_name(name)}.answers.jsonl"
                answers = stack.enter_context(open_answers(path, backend.identity))
            models[name] = Asker(_complete(name, backend, answers, opening.notice), opening.chat, backend.identity)
        yield models


def short_name(target: str) -> str:
    """The last part of a path without the ending of a file of weights; host and path of a URL."""
    if "://" in target:
        url = urlsplit(target)
        return f"{url.netloc.rpartition('@')[2]}{url.path}".rstrip("/")
    last = target.rstrip("/").rpartition("/")[2]
    return last.removesuffix(".gguf") or target


def file_name(name: str) -> str:
    """``name`` with "-" for what a file name should not have."""
    return re.sub(r"[^\w.+-]+", "-", name)


def _complete(
    name: str, backend: Backend, answers: Answers | None, notice: Notice
) -> Callable[[Sequence[Request]], list[Completion]]:
    def complete(requests: Sequence[Request]) -> list[Completion]:
        found: dict[int, Completion] = {}
        for completion in backend.complete(requests) if answers is None else answers.complete(backend, requests):
            found[completion.index] = completion
            notice(name, len(found), len(requests))
        return [found[place] for place in range(len(requests))]

    return complete
