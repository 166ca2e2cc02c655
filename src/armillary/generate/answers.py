"""An append-only file of one model's answers by request key. An answer in the file is never requested again.

The file is JSON lines. The first line names the format and the backend (``Backend.identity``); every other line holds
one answer and its seal. Answers are appended as they arrive, so a killed process loses only the requests in progress.
A torn last line is cut off. A damaged line elsewhere is reported, and its answer is requested again. A file from
another backend, model or precision is refused, since its answers could not be distinguished later.

Each line is written at once and flushed to disk every second: a killed process loses no finished answer, and a power
failure loses at most the last second.

Memory: 24 bytes per answer, and a buffer of a sixteenth of the answers. Keys are identified by 64 bits of their hash:
the probability of a collision among a million is 3e-8.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from armillary.generate.backend import Backend, Choice, Completion, Likelihood, Pair, Request, RequestError
from armillary.recipe import ArmillaryError, DamagedFileError, ForeignFileError, canonical_hash, exclusive

FORMAT = 1

_KIND = "armillary answers"
_BEGINNING = b'{"format": 1, "kind": "armillary '  # of the first line
_SEAL = "seal"
_FLUSH_S = 1.0
_BUFFER = 1 << 14
_REMEDY = "remove the file to ask for all answers again"
_RESUME = "run the same command again: it requests that answer again"


@contextlib.contextmanager
def open_answers(path: Path, identity: dict[str, Any]) -> Iterator[Answers]:
    """Open the answers in ``path`` of the backend with this ``identity``; the file is created if missing.

    Raises:
        BusyError: another process has it open.
        DamagedFileError: the first line is damaged.
        ForeignFileError: the file is not a file of answers, has a newer format, or is of another backend or model.
        ArmillaryError: the file cannot be written.
    """
    with exclusive(path.with_name(f".{path.name}.lock"), f"writes to {path.name}"):
        answers = Answers(path, identity)
        try:
            yield answers
        finally:
            answers.close()


def check_answers(path: Path) -> int:
    """The number of answers in ``path``, every line of which is compared with its seal.

    Raises:
        FileNotFoundError: there is no such file.
        DamagedFileError: a line is damaged, or the last one is torn.
        ForeignFileError: it is no such file, or of a newer format.
    """
    count = 0
    with path.open("rb") as file:
        _check_header(path, file.readline())
        for number, line in enumerate(file, 2):
            if not line.endswith(b"\n"):
                raise DamagedFileError(f"{path}: its last line, {number}, is torn; {_RESUME}")
            if _parsed(line) is None:
                raise DamagedFileError(f"{path}: line {number} is damaged; {_RESUME}")
            count += 1
    return count


class Answers:
    """A file opened by ``open_answers``. ``damaged`` lists the line numbers whose answers are requested again."""

    def __init__(self, path: Path, identity: dict[str, Any]) -> None:
        self.path = path
        self.damaged: list[int] = []
        self._flushed = time.monotonic()
        self._places = _Places()
        header = _line({"format": FORMAT, "kind": _KIND, "backend": identity})
        with self._failing():
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            self._read(header)
        except BaseException:
            os.close(self._file)
            raise

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, asked: Request | Pair) -> bool:
        return asked.key in self._places

    def complete(self, backend: Backend, requests: Sequence[Request]) -> Iterator[Completion]:
        """Yield the completion of each request: first those in the file, then the others as they arrive.

        Equal requests are sent once.

        Raises:
            RequestError: raised by the backend, with the index in ``requests``.
            ArmillaryError: the file cannot be written; the answers before are kept.
        """
        places = _by_key(requests)
        missing = []
        for key, where in places.items():
            if (saved := self._completion(key)) is None:
                missing.append(where[0])
                continue
            for place in where:
                yield replace(saved, index=place)
        if not missing:
            return
        try:
            for completion in backend.complete([requests[place] for place in missing]):
                key = requests[missing[completion.index]].key
                choices = [asdict(choice) for choice in completion.choices]
                answer = {"choices": choices, "prompt_tokens": completion.prompt_tokens}
                self._append(key, answer | _cut(completion.cut))
                for place in places[key]:
                    yield replace(completion, index=place)
        except RequestError as error:
            raise error.at(missing[error.index]) from None

    def loglikelihood(self, backend: Backend, pairs: Sequence[Pair], at_a_time: int = 512) -> list[Likelihood]:
        """The likelihood of each pair, in order. The backend gets ``at_a_time`` pairs per call; each call's results are
        kept.

        Raises:
            RequestError: raised by the backend, with the index in ``pairs``.
            ArmillaryError: the file cannot be written; the answers before are kept.
        """
        places = _by_key(pairs)
        missing = [where[0] for key, where in places.items() if key not in self._places]
        for start in range(0, len(missing), at_a_time):
            part = missing[start : start + at_a_time]
            try:
                found = backend.loglikelihood([pairs[place] for place in part])
            except RequestError as error:
                raise error.at(part[error.index]) from None
            for place, likelihood in zip(part, found, strict=True):
                plain = {"value": likelihood.value, "tokens": likelihood.tokens, "greedy": likelihood.greedy}
                self._append(pairs[place].key, {"likelihood": plain | _cut(likelihood.cut)})
        return [Likelihood(**self._answer(pair.key)["likelihood"]) for pair in pairs]

    def close(self) -> None:
        """Flush the file to disk and close it."""
        with self._failing():
            os.fsync(self._file)
        os.close(self._file)

    def _read(self, header: bytes) -> None:
        """Find the answers in the file; write the first line if the file is empty."""
        with open(self._file, "rb", closefd=False) as file:
            first = file.readline()
            # An unterminated prefix of the first line: the process was killed while writing it.
            if not first.endswith(b"\n") and header.startswith(first):
                self._cut(0)
                self._write(header)
                return
            _check_backend(self.path, _check_header(self.path, first), header)
            start = len(first)
            for number, line in enumerate(file, 2):
                if not line.endswith(b"\n"):
                    self._cut(start)
                    return
                if (document := _parsed(line)) is None:
                    self.damaged.append(number)
                else:
                    self._places.add(document["key"], start, len(line))
                start += len(line)

    def _completion(self, key: str) -> Completion | None:
        if key not in self._places:
            return None
        answer = self._answer(key)
        choices = tuple(Choice(**choice) for choice in answer["choices"])
        return Completion(0, choices, answer["prompt_tokens"], answer.get("cut", 0))

    def _answer(self, key: str) -> dict[str, Any]:
        place = self._places.get(key)
        if place is None:
            raise KeyError(key)
        start, size = place
        document = _parsed(os.pread(self._file, size, start))
        if document is None or document["key"] != key:
            raise DamagedFileError(f"{self.path}: was changed while in use; run the same command again")
        answer: dict[str, Any] = document["answer"]
        return answer

    def _append(self, key: str, answer: dict[str, Any]) -> None:
        line = _line({"key": key, "answer": answer})
        self._places.add(key, self._write(line), len(line))

    def _write(self, line: bytes) -> int:
        """Append a whole line or nothing; return its offset."""
        start = os.fstat(self._file).st_size
        with self._failing():
            try:
                rest = line
                while rest:
                    rest = rest[os.write(self._file, rest) :]
            except OSError:
                self._cut(start)
                raise
            if time.monotonic() - self._flushed > _FLUSH_S:
                os.fsync(self._file)
                self._flushed = time.monotonic()
        return start

    def _cut(self, size: int) -> None:
        with self._failing():
            os.ftruncate(self._file, size)

    @contextlib.contextmanager
    def _failing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise ArmillaryError(
                f"{self.path}: {error.strerror}; the answers in it are kept: make it writable or free space, and run "
                "the same command again"
            ) from error


class _Places:
    """Offset and length of the line of each key: sorted hashes [n] with their spans [n, 2], and the newest apart."""

    def __init__(self) -> None:
        self._keys = np.empty(0, dtype=np.uint64)
        self._spans = np.empty((0, 2), dtype=np.int64)
        self._latest: dict[int, tuple[int, int]] = {}

    def __len__(self) -> int:
        return len(self._keys) + sum(self._sorted(key) is None for key in self._latest)

    def __contains__(self, key: str) -> bool:
        return self.get(key) is not None

    def get(self, key: str) -> tuple[int, int] | None:
        """Offset and length of the newest line of ``key``; None if there is none."""
        hashed = _hash(key)
        return self._latest.get(hashed) or self._sorted(hashed)

    def add(self, key: str, start: int, length: int) -> None:
        """Add a line, which replaces an older one of its key."""
        self._latest[_hash(key)] = start, length
        if len(self._latest) > max(_BUFFER, len(self._keys) // 16):  # merging stays cheap
            keys = np.fromiter(self._latest, np.uint64, len(self._latest))
            spans = np.array(list(self._latest.values()), dtype=np.int64)
            older = ~np.isin(self._keys, keys)
            keys, spans = np.concatenate([self._keys[older], keys]), np.concatenate([self._spans[older], spans])
            order = np.argsort(keys)
            self._keys, self._spans = keys[order], spans[order]
            self._latest.clear()

    def _sorted(self, hashed: int) -> tuple[int, int] | None:
        place = int(self._keys.searchsorted(np.uint64(hashed)))
        if place == len(self._keys) or int(self._keys[place]) != hashed:
            return None
        start, length = self._spans[place].tolist()
        return start, length


def _hash(key: str) -> int:
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")


def _by_key(asked: Sequence[Request | Pair]) -> dict[str, list[int]]:
    places: dict[str, list[int]] = {}
    for place, one in enumerate(asked):
        places.setdefault(one.key, []).append(place)
    return places


def _cut(tokens: int) -> dict[str, int]:
    # Left out if nothing was cut, so that older versions can read the line.
    return {"cut": tokens} if tokens else {}


def _line(document: dict[str, Any]) -> bytes:
    # Seal the value that a reader gets, where tuples are lists.
    plain = json.loads(json.dumps(document, allow_nan=False))
    return (json.dumps({**plain, _SEAL: canonical_hash(plain)}, ensure_ascii=True) + "\n").encode()


def _sealed(line: bytes) -> dict[str, Any] | None:
    """The document of a line without its seal; None if the line does not match its seal."""
    try:
        document = json.loads(line)
        seal = document.pop(_SEAL)
        return document if seal == canonical_hash(document) else None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _parsed(line: bytes) -> dict[str, Any] | None:
    document = _sealed(line)
    return document if document is not None and isinstance(document.get("key"), str) else None


def _check_header(path: Path, first: bytes) -> dict[str, Any]:
    """The first line; refuse a file of another program or format."""
    try:
        header = json.loads(first)
    except (ValueError, RecursionError):
        header = None
    if not isinstance(header, dict) or header.get("kind") != _KIND:
        if _BEGINNING.startswith(first[: len(_BEGINNING)]):
            raise DamagedFileError(f"{path}: its first line is damaged; {_REMEDY}")
        raise ForeignFileError(f"{path}: not a file of answers of Armillary; give another file. It was not changed")
    form = header.get("format")
    if isinstance(form, int) and form > FORMAT:
        raise ForeignFileError(
            f"{path}: answers of format {form}, but this version reads formats up to {FORMAT}; use the version that "
            "wrote them. The file was not changed"
        )
    if _sealed(first) is None:
        raise DamagedFileError(f"{path}: its first line is damaged; {_REMEDY}")
    return header


def _check_backend(path: Path, header: dict[str, Any], wanted: bytes) -> None:
    """Refuse the answers of another backend or model."""
    mine, there = json.loads(wanted)["backend"], header["backend"]
    if mine != there:
        differing = [
            f"{name} is {there.get(name)!r} there and {mine.get(name)!r} now"
            for name in {**there, **mine}
            if there.get(name) != mine.get(name)
        ]
        raise ForeignFileError(
            f"{path}: has answers of another model or backend ({'; '.join(differing)}); give another file"
        )
