"""Reads the texts of evaluation sets, so that their items can be found in training data.

It reads JSON, JSON Lines (both plain or gzip) and CSV files of choice questions: the files of the standard tasks, and
any file whose rows have a question in a common field. Of conversations, the user's turns are the question.

Folders are read recursively. Files of training data (``train`` in the name) and files without questions, such as lists
of labels, are skipped, and the caller gets their names.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from armillary.corpus import KnownItem
from armillary.evaluate.tasks.data import LETTERS, Row, read_choices, read_text
from armillary.recipe import UsageError

# Fields of a question, in the order in which they are joined; "text" is the passage of a question.
_QUESTION = ("instruction", "passage", "context", "text", "question", "problem", "prompt", "input", "query", "sentence")
_SOLUTION = ("solution", "answer", "rationale", "explanation", "output")
# The turns of conversations (OpenAI, ShareGPT, TeleChat2): field, and in each turn the fields of role and text.
_TURNS = (("messages", "role", "content"), ("conversations", "from", "value"), ("dialog", "role", "content"))
_ASKING, _ANSWERING = ("user", "human"), ("assistant", "gpt", "bot", "chatgpt", "model")
_CHOICES = ("choices", "options", "option")
_SUFFIXES = (".jsonl", ".json", ".csv", ".jsonl.gz", ".json.gz")
_SPLITS = {"train": "train", "valid": "valid", "validation": "valid", "val": "valid", "dev": "dev", "test": "test"}
Split = str


@dataclass
class EvaluationSet:
    """The items of one file; ``split`` is "" if neither the file's name nor its folder names one."""

    path: Path
    split: Split
    items: list[KnownItem] = field(default_factory=list)


def read_evaluation(path: Path, note: Callable[[str], None]) -> Iterator[EvaluationSet]:
    """Yield the evaluation sets in a file, or in a folder except its training data.

    Args:
        path: a file, which is read under any name, or a folder.
        note: called with each skipped file and the reason.

    Raises:
        UsageError: no such file, an unreadable file, or no item in all of ``path``.
    """
    if path.is_file():
        yield _read(path, path.name)
        return
    found = 0
    for each in evaluation_files(path):
        if split_of(each) == "train":
            note(f"{each}: skipped because its name marks it as training data")
            continue
        try:
            one = _read(each, f"{path.name}/{each.relative_to(path)}")
        except _NoQuestionsError:
            note(f"{each}: skipped because its rows have no question (expected fields: {', '.join(_QUESTION)})")
            continue
        found += 1
        yield one
    if not found:
        raise UsageError(f"{path}: has no evaluation items; give {', '.join(_SUFFIXES)} files or folders of them")


def read_split(path: Path) -> EvaluationSet | None:
    """The items of a file of any split, named by folder, file and line; None if its rows have no question."""
    try:
        return _read(path, f"{path.parent.name}/{path.name}")
    except _NoQuestionsError:
        return None


def evaluation_files(folder: Path) -> list[Path]:
    """The files below a folder that may hold items, in order.

    Raises:
        UsageError: no such folder.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such file or folder; name evaluation files, or the folder of a task")
    return sorted(p for p in folder.rglob("*") if p.is_file() and p.name.lower().endswith(_SUFFIXES))


def split_of(path: Path) -> Split:
    """The split named by a file or its folder: train, valid, dev or test; "" if none."""
    for name in (path.name.lower().split(".")[0], path.parent.name.lower()):
        for word in name.replace("-", "_").split("_"):
            if word in _SPLITS:
                return _SPLITS[word]
    return ""


class _NoQuestionsError(UsageError):
    """No row of the file has a known question field."""


def _read(path: Path, name: str) -> EvaluationSet:
    found = EvaluationSet(path, split_of(path))
    if path.suffix.lower() == ".csv":
        for number, row in enumerate(read_choices(path), 1):
            choices = tuple(row[letter] for letter in LETTERS)
            found.items.append(KnownItem(f"{name}:{number}", row["question"], choices))
        return found
    rows = 0
    for number, row in _rows(path):
        rows += 1
        if (item := _item(f"{name}:{number}", row)) is not None:
            found.items.append(item)
    if not found.items:
        raise _NoQuestionsError(
            f"{path}: none of its {rows} rows has a question (expected fields: messages, {', '.join(_QUESTION)})"
        )
    return found


def _rows(path: Path) -> Iterator[tuple[int, Row]]:
    """The objects of a JSON Lines file, a JSON list, or its ``examples``, each with its line or position."""
    text = read_text(path)
    if not path.name.lower().removesuffix(".gz").endswith(".jsonl") or text.lstrip().startswith("["):
        try:
            document = json.loads(text)
        except (ValueError, RecursionError) as error:
            if path.name.lower().removesuffix(".gz").endswith(".jsonl"):
                raise UsageError(f"{path}: not JSON ({error})") from None
        else:
            listed = (
                document.get("examples", document.get("data", [document])) if isinstance(document, dict) else document
            )
            rows = listed if isinstance(listed, list) else []
            yield from ((number, row) for number, row in enumerate(rows, 1) if isinstance(row, dict))
            return
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise UsageError(f"{path}:{number}: not JSON ({error}); write one object per line") from None
            if isinstance(row, dict):
                yield number, row


def _item(name: str, row: Mapping[str, Any]) -> KnownItem | None:
    fields = {key.lower(): value for key, value in row.items()}
    solution = "\n".join(str(fields[key]) for key in _SOLUTION if isinstance(fields.get(key), str))
    for key, role, content in _TURNS:
        if isinstance(fields.get(key), list):
            turns = [m for m in fields[key] if isinstance(m, dict) and isinstance(m.get(content), str)]
            question = "\n".join(m[content] for m in turns if m.get(role) in _ASKING)
            solution = "\n".join(m[content] for m in turns if m.get(role) in _ANSWERING)
            break
    else:
        question = "\n".join(fields[key] for key in _QUESTION if isinstance(fields.get(key), str) and fields[key])
    return KnownItem(name, question, _choices(fields), solution) if question.strip() else None


def _choices(fields: Mapping[str, Any]) -> tuple[str, ...]:
    for key in _CHOICES:
        value = fields.get(key)
        if isinstance(value, dict):
            value = value.get("text", list(value.values()))
        if isinstance(value, list):
            return tuple(str(choice) for choice in value)
    letters = [letter.lower() for letter in LETTERS]
    return tuple(str(fields[letter]) for letter in letters) if all(letter in fields for letter in letters) else ()
