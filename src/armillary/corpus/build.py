"""Building a corpus: read, split, train the tokenizer, encode, assemble.

Work is cut into tasks (a group of source files to read, a piece of 4 MB of text to encode) that each write one file
atomically into ``ROOT/build-FINGERPRINT/``. A build that was killed finds the finished files and goes on; as each file
is a function of the sources and the recipe only, the result is byte-identical, whatever the kills and the number of
workers. The last step renames the finished folder to ``ROOT/HASH``, the hash being that of its content.

``ROOT/index/FINGERPRINT.json`` maps (recipe, path, size and modification time of each source file) to the hash: a
second build looks at the files' times and does nothing else.

Trade-offs: reading is parallel over files, so one huge file is read by one process (encoding it is parallel); a file
changed without a change of size and time goes unnoticed; a build needs about twice the size of its text on disk.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import multiprocessing
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from armillary.corpus.demo import DEMO_DOMAINS
from armillary.corpus.documents import HASH_BYTES, cut, document_hash
from armillary.corpus.shards import FORMAT, Corpus, DomainManifest, Manifest, ShardFile, shard_name
from armillary.corpus.sources import Problem, SourceFile, find_files, read_documents
from armillary.corpus.split import DUPLICATE, SET_ASIDE, TRAIN, VALIDATION, DomainDocuments, split_documents
from armillary.corpus.tokenizer import Encoder, read_tokenizer_file, train_bpe
from armillary.recipe import ArmillaryError, CorpusSpec, UsageError, canonical_hash

GROUP_BYTES = 8 << 20  # source files read by one task
PIECE_BYTES = 4 << 20  # text encoded by one task
SAMPLE_BYTES = 2 << 20  # text per domain that the tokenizer is trained on
SAMPLE_PIECES = 64  # pieces per domain that this text is taken from
PROBLEMS_KEPT = 100  # per domain, in the manifest
SMALL_BYTES = 4 << 20  # sources below this are built without starting processes

Progress = Callable[[str, int, int], None]


class Task(Protocol):
    """What ``_run`` needs of a task: the file that exists once it is done, and its share of the work in bytes."""

    @property
    def output(self) -> Path: ...
    @property
    def size(self) -> int: ...


T = TypeVar("T", bound=Task)


@dataclass(frozen=True)
class ReadTask:
    """Read a group of files into pieces ``output-N.parquet``; ``output`` (JSON) says how many, and what was wrong."""

    files: tuple[SourceFile, ...]
    text_field: str
    max_chars: int
    output: Path

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)


@dataclass(frozen=True)
class EncodeTask:
    """Encode the documents of a piece by their fates into ``output`` (npz: train, validation, bytes)."""

    piece: Path
    fates: bytes
    tokenizer: Path
    output: Path
    size: int


def build_corpus(
    spec: CorpusSpec, root: Path, *, workers: int | None = None, progress: Progress | None = None
) -> Corpus:
    """Build ``spec`` into ``root/<hash>/`` and open it; at once where it is there and its sources have not changed.

    Args:
        workers: processes to use; by default one per CPU core, and none beside the caller's for small sources.
        progress: called in this process with (stage, done, total); bytes in the stages "read" and "encode".

    Raises:
        UsageError: a source that is not there, holds no text, or too little to split; a wrong tokenizer file.
        ArmillaryError: disk full, a worker that was killed, a changed corpus folder. Finished parts are kept, and the
            next call goes on from them.
    """
    found = {name: find_files(name, domain) for name, domain in spec.domains.items()}
    tokenizer_json = None if spec.tokenizer.file is None else read_tokenizer_file(Path(spec.tokenizer.file))
    fingerprint = canonical_hash(
        {
            "format": FORMAT,
            "spec": spec.model_dump(mode="json"),
            "tokenizer": tokenizer_json and hashlib.sha256(tokenizer_json.encode()).hexdigest(),
            "files": {name: [[f.path, f.size, f.version] for f in files] for name, (files, _) in found.items()},
        }
    )
    folder = root / f"build-{fingerprint}"
    try:
        if built := _already_built(root, fingerprint):
            return built
        root.mkdir(parents=True, exist_ok=True)
        # One build at a time in a root: a second one of the same corpus then finds it done.
        with open(root / ".lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if built := _already_built(root, fingerprint):
                return built
            size = sum(file.size for files, _ in found.values() for file in files)
            count = workers or (1 if size < SMALL_BYTES else os.cpu_count() or 1)
            with _workers(count) as executor:
                path = _build(spec, found, tokenizer_json, folder, executor, progress or (lambda *_: None))
            _write(root / "index" / f"{fingerprint}.json", json.dumps({"hash": path.name}).encode())
            shutil.rmtree(folder)
            return Corpus.open(path)
    except UsageError:
        # The sources must change, and then these parts belong to no build.
        shutil.rmtree(folder, ignore_errors=True)
        raise
    except BrokenProcessPool as error:
        raise ArmillaryError(
            f"{folder}: a worker process died (out of memory? try fewer workers; or a script that calls build_corpus "
            "outside of if __name__ == '__main__'); finished parts are kept, build again to go on"
        ) from error
    except OSError as error:
        raise ArmillaryError(
            f"{error.filename or folder}: {error.strerror or error}; finished parts are kept in {folder}: "
            "make room or fix the permission there, then build again to go on"
        ) from error


def _already_built(root: Path, fingerprint: str) -> Corpus | None:
    try:
        path = root / str(json.loads((root / "index" / f"{fingerprint}.json").read_bytes())["hash"])
    except FileNotFoundError:
        return None
    return Corpus.open(path) if path.exists() else None


def _build(
    spec: CorpusSpec,
    found: dict[str, tuple[list[SourceFile], list[Problem]]],
    tokenizer_json: str | None,
    folder: Path,
    executor: Executor | None,
    progress: Progress,
) -> Path:
    """All stages; returns the folder of the finished corpus."""
    reads = {
        name: [
            ReadTask(group, domain.text_field, spec.max_document_chars, folder / "read" / f"{i:03d}-{j:06d}.json")
            for j, group in enumerate(_groups(found[name][0]))
        ]
        for i, (name, domain) in enumerate(spec.domains.items())
    }
    _run("read", _read, [task for tasks in reads.values() for task in tasks], executor, progress)
    summaries = {name: [json.loads(task.output.read_bytes()) for task in tasks] for name, tasks in reads.items()}
    pieces = {
        name: [
            _piece(task.output, k)
            for task, summary in zip(tasks, summaries[name], strict=True)
            for k in range(summary["pieces"])
        ]
        for name, tasks in reads.items()
    }
    problems = {
        name: [p.message for p in found[name][1]] + [text for s in summaries[name] for text in s["problems"]]
        for name in spec.domains
    }
    for name, domain in spec.domains.items():
        if not pieces[name]:
            listed = "".join(f"\n  {problem}" for problem in problems[name][:5])
            raise UsageError(f"domain '{name}': source {domain.source} holds no usable text{listed}")

    tables = {
        name: pa.concat_tables([pq.read_table(piece, columns=["hash", "chars", "bytes"]) for piece in pieces[name]])
        for name in spec.domains
    }
    documents = [
        DomainDocuments(
            name,
            domain.train,
            np.frombuffer(b"".join(tables[name]["hash"].to_pylist()), dtype=f"S{HASH_BYTES}"),
            tables[name]["chars"].to_numpy(),
        )
        for name, domain in spec.domains.items()
    ]
    fates = dict(
        zip(spec.domains, split_documents(documents, spec.validation_share, spec.validation_chars), strict=True)
    )

    tokenizer_file = folder / "tokenizer.json"
    if not tokenizer_file.exists():
        progress("tokenizer", 0, 1)
        if tokenizer_json is None:
            sample = (
                text
                for d in documents
                if d.train
                for text in _sample(d.hashes, fates[d.name], tables[d.name]["bytes"].to_numpy(), pieces[d.name])
            )
            tokenizer_json = train_bpe(sample, spec.tokenizer.vocab_size)
        _write(tokenizer_file, tokenizer_json.encode())
    progress("tokenizer", 1, 1)

    encodes: dict[str, list[EncodeTask]] = {}
    for name in spec.domains:
        start = 0
        encodes[name] = []
        for piece in pieces[name]:
            count = pq.read_metadata(piece).num_rows
            part = fates[name][start : start + count].tobytes()
            output = folder / "encode" / f"{piece.stem}.npz"
            encodes[name].append(EncodeTask(piece, part, tokenizer_file, output, piece.stat().st_size))
            start += count
    _run("encode", _encode, [task for tasks in encodes.values() for task in tasks], executor, progress)

    out = folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    tokenizer_bytes = tokenizer_file.read_bytes()
    encoder = Encoder(tokenizer_bytes.decode())
    tokenizer_shard = ShardFile(
        path="tokenizer.json", bytes=len(tokenizer_bytes), sha256=hashlib.sha256(tokenizer_bytes).hexdigest()
    )
    _write(out / "tokenizer.json", tokenizer_bytes)
    domains: dict[str, DomainManifest] = {}
    for done, (name, domain) in enumerate(spec.domains.items()):
        progress("assemble", done, len(spec.domains))
        parts = [task.output for task in encodes[name]]
        files = [
            _concatenate(parts, "validation", out, f"validation/{shard_name(name)}.bin"),
            _concatenate(parts, "bytes", out, f"validation/{shard_name(name)}.bytes"),
        ]
        if domain.train:
            files.append(_concatenate(parts, "train", out, f"train/{shard_name(name)}.bin"))
        width = np.dtype(encoder.dtype).itemsize
        sizes = tables[name]["bytes"].to_numpy()
        count_of = {fate: int(np.count_nonzero(fates[name] == fate)) for fate in range(4)}
        domains[name] = DomainManifest(
            source=domain.source,
            licence=(
                DEMO_DOMAINS[domain.source.removeprefix("demo:")].licence if domain.source.startswith("demo:") else None
            ),
            train=domain.train,
            documents=len(fates[name]),
            cut=sum(summary["cut"] for summary in summaries[name]),
            duplicates=count_of[DUPLICATE],
            set_aside=count_of[SET_ASIDE],
            train_documents=count_of[TRAIN],
            train_tokens=files[2].bytes // width if domain.train else 0,
            train_bytes=int(sizes[fates[name] == TRAIN].sum()),
            validation_documents=count_of[VALIDATION],
            validation_tokens=files[0].bytes // width,
            validation_bytes=int(sizes[fates[name] == VALIDATION].sum()),
            files=tuple(files),
            problem_count=sum(s["problem_count"] for s in summaries[name]) + len(found[name][1]),
            problems=tuple(problems[name][:PROBLEMS_KEPT]),
        )
    progress("assemble", len(spec.domains), len(spec.domains))
    settings = spec.model_dump(mode="json", include={"validation_share", "validation_chars", "max_document_chars"})
    content = {
        "format": FORMAT,
        "tokenizer": tokenizer_shard.sha256,
        "domains": [[n, d.train, [f.sha256 for f in d.files]] for n, d in domains.items()],
        **settings,
    }
    manifest = Manifest(
        hash=canonical_hash(content),
        dtype=encoder.dtype,
        vocab_size=encoder.vocab_size,
        end_of_text=encoder.end,
        end_of_text_id=encoder.end_id,
        tokenizer=tokenizer_shard,
        domains=domains,
        **settings,
    )
    _write(out / "manifest.json", (manifest.model_dump_json(indent=1) + "\n").encode())
    path = folder.parent / manifest.hash
    if path.exists():
        # The same content from other files: keep the shards, and say where they came from this time.
        os.replace(out / "manifest.json", path / "manifest.json")  # noqa: PTH105
    else:
        out.rename(path)
    _sync_folder(folder.parent)
    return path


def _groups(files: Sequence[SourceFile]) -> Iterator[tuple[SourceFile, ...]]:
    """Consecutive files of together about GROUP_BYTES."""
    group: list[SourceFile] = []
    size = 0
    for file in files:
        if group and size + file.size > GROUP_BYTES:
            yield tuple(group)
            group, size = [], 0
        group.append(file)
        size += file.size
    yield tuple(group)


def _piece(summary: Path, index: int) -> Path:
    return summary.with_name(f"{summary.stem}-{index:06d}.parquet")


def _read(task: ReadTask) -> None:
    problems: list[str] = []
    problem_count = pieces = cut_documents = size = 0
    texts: list[str] = []

    def write_piece() -> None:
        sizes = [len(text.encode()) for text in texts]
        table = pa.table(
            {
                "hash": pa.array([document_hash(text) for text in texts], pa.binary(HASH_BYTES)),
                "chars": pa.array([len(text) for text in texts], pa.int64()),
                "bytes": pa.array(sizes, pa.int64()),
                "text": pa.array(texts, pa.large_string()),
            }
        )
        buffer = io.BytesIO()
        pq.write_table(table, buffer, compression="zstd")
        _write(_piece(task.output, pieces), buffer.getvalue())

    for file in task.files:
        for found in read_documents(file, task.text_field):
            if isinstance(found, Problem):
                problem_count += 1
                problems += [found.message] if len(problems) < PROBLEMS_KEPT else []
                continue
            parts = list(cut(found, task.max_chars))
            cut_documents += len(parts) > 1
            for part in parts:
                if part.strip():
                    texts.append(part)
                    size += len(part)
            if size >= PIECE_BYTES:
                write_piece()
                pieces += 1
                texts, size = [], 0
    if texts:
        write_piece()
        pieces += 1
    summary = {"pieces": pieces, "cut": cut_documents, "problem_count": problem_count, "problems": problems}
    _write(task.output, json.dumps(summary).encode())


def _sample(
    hashes: NDArray[np.bytes_], fates: NDArray[np.uint8], sizes: NDArray[np.int64], pieces: list[Path]
) -> Iterator[str]:
    """About SAMPLE_BYTES of a domain's training documents: those with the lowest hashes, which is a fair sample."""
    ends = np.cumsum([pq.read_metadata(piece).num_rows for piece in pieces])
    used = np.unique(np.linspace(0, len(pieces) - 1, min(len(pieces), SAMPLE_PIECES)).astype(int))
    piece_of = np.searchsorted(ends, np.arange(len(fates)), side="right")
    training = np.flatnonzero((fates == TRAIN) & np.isin(piece_of, used))
    by_hash = training[np.argsort(hashes[training], kind="stable")]
    chosen = np.sort(by_hash[np.cumsum(sizes[by_hash]) - sizes[by_hash] < SAMPLE_BYTES])
    for index in used:
        rows = chosen[piece_of[chosen] == index] - (ends[index - 1] if index else 0)
        yield from pq.read_table(pieces[index], columns=["text"])["text"].take(rows).to_pylist()


def _encode(task: EncodeTask) -> None:
    encoder = Encoder(task.tokenizer.read_text(encoding="utf-8"))
    train: list[int] = []
    validation: list[int] = []
    sizes: list[NDArray[np.uint32]] = [np.empty(0, dtype=np.uint32)]
    texts = pq.read_table(task.piece, columns=["text"])["text"]
    for fate, text in zip(task.fates, texts, strict=True):
        if fate == TRAIN:
            train += encoder.encode(text.as_py())
        elif fate == VALIDATION:
            ids, spelled = encoder.encode_with_bytes(text.as_py())
            validation += ids
            sizes.append(spelled)
    buffer = io.BytesIO()
    dtype = np.dtype(encoder.dtype).newbyteorder("<")
    np.savez(
        buffer,
        train=np.array(train, dtype=dtype),
        validation=np.array(validation, dtype=dtype),
        bytes=np.concatenate(sizes).astype("<u4"),
    )
    _write(task.output, buffer.getvalue())


def _concatenate(parts: list[Path], key: str, out: Path, name: str) -> ShardFile:
    """Write one array of all encoded pieces, in order, to ``out/name``."""
    path = out / name
    path.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    size = 0
    with open(path, "wb") as file:
        for part in parts:
            with np.load(part, allow_pickle=False) as arrays:
                data = arrays[key].tobytes()
            digest.update(data)
            size += file.write(data)
        file.flush()
        os.fsync(file.fileno())
    _sync_folder(path.parent)
    return ShardFile(path=name, bytes=size, sha256=digest.hexdigest())


def _run(
    stage: str, function: Callable[[T], None], tasks: Sequence[T], executor: Executor | None, progress: Progress
) -> None:
    """Do the tasks whose output is not there yet, the largest first."""
    total = sum(task.size for task in tasks)
    waiting = sorted((task for task in tasks if not task.output.exists()), key=lambda task: -task.size)
    done = total - sum(task.size for task in waiting)
    progress(stage, done, total)
    if executor is None:
        for task in waiting:
            function(task)
            done += task.size
            progress(stage, done, total)
        return
    futures = {executor.submit(function, task): task for task in waiting}
    for future in as_completed(futures):
        future.result()
        done += futures[future].size
        progress(stage, done, total)


@contextmanager
def _workers(count: int) -> Iterator[Executor | None]:
    """A pool of ``count`` processes, or None where the caller's own is enough."""
    if count == 1:
        yield None
        return
    # spawn: a fork would copy the caller's threads' locks in whatever state they are.
    executor = ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), initializer=_start_worker)
    try:
        yield executor
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def _start_worker() -> None:
    # Ctrl-C reaches the whole process group; the parent alone decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent: Any = multiprocessing.parent_process()

    def leave_with_parent() -> None:
        parent.join()
        os._exit(1)

    # A parent that was killed cannot end its workers, which would wait for tasks forever.
    threading.Thread(target=leave_with_parent, daemon=True).start()


def _write(path: Path, data: bytes) -> None:
    """Write a file so that after a crash it is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(aside, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
