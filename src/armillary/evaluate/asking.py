"""Opens the models named on the command line, and keeps their answers so that a stopped examination resumes."""

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

# Called with the name of a model, the number of answers so far, and the number requested at this stage.
Notice = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Asker:
    """A model that answers requests: ``complete`` returns the completions in the order of the requests.

    With ``chat``, a prompt is sent as chat messages. Without it, the turns are written as plain text, for models
    without a chat template. ``identity`` is that of the backend.
    """

    complete: Callable[[Sequence[Request]], Sequence[Completion]]
    chat: bool = True
    identity: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Opening:
    """How models are opened and prompted.

    Attributes:
        chat: send prompts as chat messages instead of plain text.
        folder: where answers are kept, so that a killed examination resumes; None keeps none.
        notice: called as answers arrive.
    """

    options: BackendOptions = field(default_factory=BackendOptions)
    engine: str | None = None
    chat: bool = True
    folder: Path | None = None
    notice: Notice = lambda model, done, total: None


@contextmanager
def opened(targets: Sequence[str], opening: Opening) -> Iterator[dict[str, Asker]]:
    """Opens the models of ``targets``, keyed by a short name, and closes them at the end.

    Raises:
        UsageError: a target has no model, or two have the same name.
        ForeignFileError: the answers kept under this name come from another model.
    """
    with ExitStack() as stack:
        models: dict[str, Asker] = {}
        for target in targets:
            name = short_name(target)
            if name in models:
                raise UsageError(f"{target}: another model already has the name {name}; rename one of the two")
            backend = stack.enter_context(closing(open_backend(target, opening.options, opening.engine)))
            answers = None
            if opening.folder is not None:
                opening.folder.mkdir(parents=True, exist_ok=True)
                path = opening.folder / f"{file_name(name)}.answers.jsonl"
                answers = stack.enter_context(open_answers(path, backend.identity))
            models[name] = Asker(_complete(name, backend, answers, opening.notice), opening.chat, backend.identity)
        yield models


def short_name(target: str) -> str:
    """The last part of a path without the suffix of a weights file; host and path of a URL."""
    if "://" in target:
        url = urlsplit(target)
        return f"{url.netloc.rpartition('@')[2]}{url.path}".rstrip("/")
    last = target.rstrip("/").rpartition("/")[2]
    return last.removesuffix(".gguf") or target


def file_name(name: str) -> str:
    """``name`` with "-" in place of characters that a file name should not contain."""
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
