"""Turns a file of prompts into a file of completions. It resumes, since answers are kept next to it as they arrive.

``prompts.jsonl`` has one JSON object per line: ``prompt`` (text) or ``messages`` (a list of ``role`` and ``content``),
optionally ``id`` (text or a whole number, returned unchanged), and any field of ``Sampling`` for that prompt alone.

``completions.jsonl`` (format 1) has one row per prompt, in the same order: ``format``, ``id`` (by default the line of
the prompt), ``request`` (the prompt with all sampling options), ``choices`` (``text``, ``tokens`` and ``finish`` of
each answer), ``prompt_tokens``, and ``backend`` (the model that answered). The file is written in one step once all
answers exist, and depends only on prompts and answers. Until then, and for later runs with more prompts, the answers
are in ``completions.answers.jsonl`` (see ``answers.py``).
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from armillary.files import write_file
from armillary.generate.answers import open_answers
from armillary.generate.backend import Backend, Completion, Message, Request, RequestError, Sampling
from armillary.recipe import ArmillaryError, ForeignFileError, UsageError

COMPLETIONS_FORMAT = 1

_ROLES = ("system", "user", "assistant")
_SAMPLING = tuple(one.name for one in fields(Sampling))
_KNOWN = ("prompt", "messages", "id", *_SAMPLING)
_MOST_PROBLEMS = 20


@dataclass(frozen=True)
class Prompt:
    """One row of a file of prompts: its file and line, its id, and its request."""

    where: str
    id: str | int
    request: Request


@dataclass(frozen=True)
class PromptOptions:
    """Defaults for all prompts, which the fields of a prompt override.

    ``chat`` turns text into a user message; ``system`` is added to messages without a system message.
    """

    sampling: Sampling = field(default_factory=Sampling)
    chat: bool = False
    system: str | None = None

    def __post_init__(self) -> None:
        if self.system is not None and not self.chat:
            raise UsageError("a system message needs a chat: add --chat, or write it into the prompt")

    def request(self, prompt: str | tuple[Message, ...], sampling: Sampling | None = None) -> Request:
        """The request for a user's prompt."""
        if isinstance(prompt, str) and self.chat:
            prompt = (Message("user", prompt),)
        if self.system is not None and not isinstance(prompt, str) and prompt[0].role != "system":
            prompt = (Message("system", self.system), *prompt)
        return Request(prompt, sampling or self.sampling)


@dataclass(frozen=True)
class Written:
    """The result of ``complete_file``: all rows, rows kept from before, and the damaged lines of ``answers``."""

    rows: int
    kept: int
    answers: str
    damaged: tuple[int, ...]


def read_prompts(path: Path, options: PromptOptions) -> list[Prompt]:
    """The prompts in a JSONL file; empty lines are skipped.

    Raises:
        UsageError: the file cannot be read, holds no prompts, or has wrong rows; the message names line and field of
            each.
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}; name a file of prompts, one JSON object per line") from None
    prompts, problems = list[Prompt](), list[str]()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            prompts.append(_prompt(f"{path}:{number}", number, line, options))
        except UsageError as error:
            problems.append(f"{path}:{number}: {error}")
    if problems:
        more = len(problems) - _MOST_PROBLEMS
        shown = problems[:_MOST_PROBLEMS] + ([f"… and {more} more rows"] if more > 0 else [])
        raise UsageError("\n".join(shown))
    if not prompts:
        raise UsageError(f'{path}: has no prompts; write one JSON object per line, such as {{"prompt": "The sky is"}}')
    return prompts


def complete_file(
    backend: Backend, prompts: Sequence[Prompt], out: Path, progress: Callable[[int, int, int], None]
) -> Written:
    """Write the completions of ``prompts`` to ``out``; request only answers that are missing.

    ``progress`` gets the number of answered prompts, of all prompts, and of answers kept from before.

    Raises:
        ForeignFileError: ``out`` exists and is not a file of completions, or the answers next to it are of another
            model.
        BusyError: another process is writing the same file.
        ArmillaryError: a prompt failed, with its file and line; or a file cannot be written.
    """
    _check_out(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    requests = [prompt.request for prompt in prompts]
    completions: dict[int, Completion] = {}
    with open_answers(answers_file(out), backend.identity) as answers:
        resumed = sum(request in answers for request in requests)
        progress(resumed, len(requests), resumed)
        try:
            for completion in answers.complete(backend, requests):
                completions[completion.index] = completion
                progress(max(resumed, len(completions)), len(requests), resumed)
        except RequestError as error:
            kind = UsageError if isinstance(error, UsageError) else ArmillaryError
            raise kind(f"{prompts[error.index].where}: {error.problem}") from None
        rows = [_row(prompt, completions[place], backend.identity) for place, prompt in enumerate(prompts)]
        write_file(out, "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows).encode())
        return Written(len(rows), resumed, str(answers.path), tuple(answers.damaged))


def answers_file(out: Path) -> Path:
    """The file in which answers for ``out`` are kept as they arrive."""
    return out.with_name(f"{out.name.removesuffix('.jsonl')}.answers.jsonl")


def _row(prompt: Prompt, completion: Completion, identity: dict[str, Any]) -> dict[str, Any]:
    return {
        "format": COMPLETIONS_FORMAT,
        "id": prompt.id,
        "request": prompt.request.to_json(),
        "choices": [asdict(choice) for choice in completion.choices],
        "prompt_tokens": completion.prompt_tokens,
        "backend": identity,
    }


def _check_out(out: Path) -> None:
    """Refuse to overwrite a file that is not a file of completions."""
    if out.is_dir():
        raise UsageError(f"{out}: is a folder; name a file for the completions")
    try:
        with open(out, "rb") as file:
            first = file.readline()
    except FileNotFoundError:
        return
    try:
        row = json.loads(first)
        ours = isinstance(row, dict) and {"format", "request", "choices"} <= row.keys()
    except (ValueError, RecursionError):
        ours = False
    if not ours:
        raise ForeignFileError(f"{out}: exists and is not a file of completions; give another file. It was not changed")
    if not isinstance(row["format"], int) or row["format"] > COMPLETIONS_FORMAT:
        raise ForeignFileError(
            f"{out}: completions of format {row['format']}, but this version writes format {COMPLETIONS_FORMAT}; name "
            "another file, or use the version that wrote it"
        )


def _prompt(where: str, number: int, line: bytes, options: PromptOptions) -> Prompt:
    """The prompt in a line; errors name the field."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"not JSON ({error}); write one object per line") from None
    if not isinstance(row, dict):
        raise UsageError(f'a JSON {type(row).__name__}, not an object; write {{"prompt": …}}')
    for name in row:
        if name not in _KNOWN:
            close = difflib.get_close_matches(name, _KNOWN, 1)
            nearest = f"nearest valid: {close[0]!r}" if close else f"valid are {', '.join(_KNOWN)}"
            raise UsageError(f"unknown field {name!r}; {nearest}")
    if ("prompt" in row) == ("messages" in row):
        raise UsageError("give prompt or messages, not both")
    name = row.get("id", number)
    if not isinstance(name, str | int) or isinstance(name, bool):
        raise UsageError(f"id: must be text or a whole number, given {name!r}")
    prompt = _text("prompt", row["prompt"]) if "prompt" in row else _messages(row["messages"])
    given = {option: _value(option, row[option]) for option in _SAMPLING if option in row}
    return Prompt(where, name, options.request(prompt, replace(options.sampling, **given)))


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise UsageError(f"{name}: must be a non-empty text, given {value!r}")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise UsageError(f"{name}: contains a lone surrogate, which has no UTF-8 form")
    return value


def _messages(value: Any) -> tuple[Message, ...]:
    if not isinstance(value, list) or not value:
        raise UsageError(f"messages: must be a list of objects with role and content, given {value!r}")
    messages = []
    for place, message in enumerate(value):
        where = f"messages[{place}]"
        if not isinstance(message, dict) or message.keys() != {"role", "content"}:
            raise UsageError(f"{where}: must be an object with role and content only, given {message!r}")
        if message["role"] not in _ROLES:
            raise UsageError(f"{where}.role: must be one of {', '.join(_ROLES)}, given {message['role']!r}")
        messages.append(Message(message["role"], _text(f"{where}.content", message["content"])))
    return tuple(messages)


def _value(option: str, value: Any) -> Any:
    """A sampling option of one row; ``Sampling`` checks its range."""
    if option == "stop":
        stops = [value] if isinstance(value, str) else value
        if not isinstance(stops, list):
            raise UsageError(f"stop: must be text or a list of texts, given {value!r}")
        return tuple(_text(f"stop[{place}]", stop) for place, stop in enumerate(stops))
    if option == "top_k" and value is None:
        return None
    broken = option in ("temperature", "top_p")
    if not isinstance(value, int | float if broken else int) or isinstance(value, bool):
        raise UsageError(f"{option}: must be a {'number' if broken else 'whole number'}, given {value!r}")
    return value
