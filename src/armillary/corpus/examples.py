"""Supervised examples: token ids and the weight of each in the loss, as they lie on disk beside a corpus.

A set of examples belongs to the corpus whose tokenizer made its tokens, and is named by its content hash::

    CORPUS/examples/HASH/
        manifest.json   how many examples and tokens, sha256 of every file; sealed
        tokens.bin      token ids of all examples, one behind the other, in the corpus's type
        weights.bin     fp32 per token
        ends.bin        int64 per example: where it ends in the two

Every example ends with the corpus's end-of-text token, and that token has a weight: a model that never learns to stop
is of no use. The weight of an example's first token counts for nothing, since no token of the example predicts it.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from armillary.corpus.shards import Corpus
from armillary.files import aside, sync
from armillary.recipe import (
    ArmillaryError,
    DamagedFileError,
    FileProblem,
    ForeignFileError,
    UsageError,
    canonical_hash,
    problem_of,
    read_sealed,
    write_sealed,
)

FORMAT = 1
REMEDY = "write the examples again (corpus.write_examples), which gives the same hash"
_FILES = ("tokens.bin", "weights.bin", "ends.bin")


@dataclass(frozen=True)
class Example:
    """Token ids and the weight of each in the loss: 0 for what is given, such as a prompt."""

    tokens: Sequence[int]
    weights: Sequence[float]


class Examples:
    """An opened set of examples. ``write_examples`` and ``open_examples`` return one."""

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path, self.hash, self.name = path, str(manifest["hash"]), str(manifest["name"])
        self.tokens: NDArray[Any] = np.fromfile(
            path / "tokens.bin", dtype=np.dtype(manifest["dtype"]).newbyteorder("<")
        )
        self.weights: NDArray[np.float32] = np.fromfile(path / "weights.bin", dtype="<f4")
        self.ends: NDArray[np.int64] = np.fromfile(path / "ends.bin", dtype="<i8")

    def __len__(self) -> int:
        return len(self.ends)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each example."""
        return np.diff(self.ends, prepend=0)

    def part(self, index: int) -> slice:
        """Where example ``index`` lies in ``tokens`` and ``weights``."""
        return slice(int(self.ends[index - 1]) if index else 0, int(self.ends[index]))


def write_examples(corpus: Corpus, name: str, examples: Iterable[Example]) -> Examples:
    """Write ``examples`` beside ``corpus`` and open them; the same examples written again are the same set.

    An example that does not end with the corpus's end-of-text token gets one, with the weight 1. ``name`` stands for
    the set in results.

    Raises:
        UsageError: no examples, or one with a token outside of the corpus's vocabulary, weights that are not one finite
            number of at least 0 for each token, no token before its end, or an end of weight 0.
        ArmillaryError: the files cannot be written.
    """
    root = corpus.path / "examples"
    hidden = aside(root / "new")
    try:
        hidden.mkdir(parents=True)
        ends, total = [], 0
        with open(hidden / "tokens.bin", "wb") as tokens_file, open(hidden / "weights.bin", "wb") as weights_file:
            for number, example in enumerate(examples):
                tokens, weights = _checked(example, corpus, f"example {number} of '{name}'")
                tokens_file.write(tokens.tobytes())
                weights_file.write(weights.tobytes())
                ends.append(total := total + len(tokens))
        if not ends:
            raise UsageError(f"'{name}': there are no examples; give at least one")
        np.array(ends, dtype="<i8").tofile(hidden / "ends.bin")
        files = {file: hashlib.sha256((hidden / file).read_bytes()).hexdigest() for file in _FILES}
        manifest = {
            "format": FORMAT,
            "corpus": corpus.hash,
            "name": name,
            "dtype": corpus.manifest.dtype,
            "examples": len(ends),
            "tokens": total,
            "files": files,
        }
        manifest["hash"] = _content_hash(manifest)
        write_sealed(hidden / "manifest.json", manifest)
        for file in _FILES:
            sync(hidden / file)
        sync(hidden)
        folder = root / str(manifest["hash"])
        try:
            hidden.rename(folder)
            sync(root)
        except OSError:
            if not (folder / "manifest.json").exists():
                raise
    except OSError as error:
        raise ArmillaryError(
            f"{root}: cannot be written ({error.strerror}); free space or choose another disk"
        ) from error
    finally:
        shutil.rmtree(hidden, ignore_errors=True)
    return open_examples(corpus, str(manifest["hash"]))


def verify_examples(corpus: Path, name: str) -> list[FileProblem]:
    """Everything wrong with the examples of corpus ``name`` in the folder ``corpus``; unfinished sets are skipped."""
    problems = []
    for folder in sorted(path for path in (corpus / "examples").glob("*") if not path.name.startswith(".")):
        try:
            of = _manifest(folder, name)
        except FileNotFoundError:
            problems.append(FileProblem(folder / "manifest.json", "is missing", REMEDY))
            continue
        except OSError as error:
            problems.append(problem_of(folder / "manifest.json", error, "make it readable"))
            continue
        except ArmillaryError as error:
            problems.append(problem_of(folder / "manifest.json", error, REMEDY))
            continue
        for file in _FILES:
            try:
                if hashlib.sha256((folder / file).read_bytes()).hexdigest() != of["files"].get(file):
                    problems.append(FileProblem(folder / file, "is not what was written", REMEDY))
            except FileNotFoundError:
                problems.append(FileProblem(folder / file, "is missing", REMEDY))
            except OSError as error:
                problems.append(problem_of(folder / file, error, "make it readable"))
    return problems


def _checked(example: Example, corpus: Corpus, where: str) -> tuple[NDArray[Any], NDArray[np.float32]]:
    """Tokens and weights as they are stored, with the end of the text."""
    tokens, weights = np.asarray(example.tokens, dtype=np.int64), np.asarray(example.weights, dtype=np.float32)
    if tokens.ndim != 1 or tokens.shape != weights.shape:
        raise UsageError(f"{where}: {tokens.size} tokens have {weights.size} weights; give one weight for each token")
    if not (np.isfinite(weights) & (weights >= 0)).all():
        raise UsageError(f"{where}: weights must be finite and at least 0, found {weights.min()} to {weights.max()}")
    outside = tokens[(tokens < 0) | (tokens >= corpus.vocab_size)]
    if outside.size:
        raise UsageError(
            f"{where}: token {outside[0]} lies outside of the corpus's vocabulary (0 to {corpus.vocab_size - 1}); "
            "encode it with the corpus's tokenizer"
        )
    end = corpus.manifest.end_of_text_id
    if not tokens.size or tokens[-1] != end:
        tokens, weights = np.append(tokens, end), np.append(weights, np.float32(1.0))
    if len(tokens) < 2:
        raise UsageError(f"{where}: has no token before its end; leave it out")
    if weights[-1] == 0:
        raise UsageError(f"{where}: its end of text has the weight 0, so the model would not learn to stop; give it 1")
    return tokens.astype(np.dtype(corpus.manifest.dtype).newbyteorder("<")), weights.astype("<f4")


def open_examples(corpus: Corpus, name: str) -> Examples:
    """The set of ``corpus`` with the hash ``name``; its files are compared with the manifest.

    Raises:
        UsageError: the corpus has no such set.
        DamagedFileError: a file is missing, torn or changed.
        ForeignFileError: it is of a newer format, or belongs to another corpus.
        ArmillaryError: a file cannot be read.
    """
    folder = corpus.path / "examples" / name
    try:
        manifest = _manifest(folder, corpus.hash)
    except (FileNotFoundError, NotADirectoryError) as error:
        known = sorted(
            p.parent.name for p in folder.parent.glob("*/manifest.json") if not p.parent.name.startswith(".")
        )
        there = f"there are {', '.join(known)}" if known else "it has none (corpus.write_examples)"
        raise UsageError(f"corpus {corpus.hash}: no examples {name}; {there}") from error
    except OSError as error:
        raise ArmillaryError(f"{folder}: cannot be read ({error.strerror}); make it readable and try again") from error
    try:
        stamps = tuple((s.st_size, s.st_mtime_ns, s.st_ino) for s in ((folder / file).stat() for file in _FILES))
        return _opened(folder, canonical_hash(manifest), stamps)
    except OSError as error:
        raise DamagedFileError(
            f"{error.filename}: is missing or cannot be read ({error.strerror}); {REMEDY}"
        ) from error


def _manifest(folder: Path, corpus: str) -> dict[str, Any]:
    """The manifest of the set in ``folder``, which belongs to the corpus with the hash ``corpus``.

    Raises:
        OSError: it is missing or cannot be read.
        DamagedFileError, ForeignFileError: as ``open_examples``.
    """
    manifest = read_sealed(folder / "manifest.json", "manifest of examples", FORMAT, REMEDY)
    if manifest.get("corpus") != corpus:
        raise ForeignFileError(f"{folder}: belongs to corpus {manifest.get('corpus')}, not to {corpus}")
    if manifest.get("hash") != folder.name or _content_hash(manifest) != folder.name:
        raise DamagedFileError(f"{folder / 'manifest.json'}: is not of the examples that its folder names; {REMEDY}")
    return manifest


# Many runs of one process read the same set, which is compared with its manifest once per version of its files.
@lru_cache(maxsize=4)
def _opened(folder: Path, _: str, stamps: tuple[tuple[int, int, int], ...]) -> Examples:
    manifest = read_sealed(folder / "manifest.json", "manifest of examples", FORMAT, REMEDY)
    for file in _FILES:
        if hashlib.sha256((folder / file).read_bytes()).hexdigest() != manifest["files"].get(file):
            raise DamagedFileError(f"{folder / file}: is not what was written; {REMEDY}")
    return Examples(folder, manifest)


def _content_hash(manifest: dict[str, Any]) -> str:
    return canonical_hash({key: manifest.get(key) for key in ("corpus", "name", "dtype", "files")})
