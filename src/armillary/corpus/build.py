"""Building a corpus: read, split, train the tokenizer, encode, assemble.

Work is cut into tasks (a group of source files to read, a piece of 4 MB of text to encode) that each write one file
atomically into ``ROOT/build-FINGERPRINT/``. A build that was killed finds the finished files and goes on; as each file
is a function of the sources and the recipe only, the result is byte-identical, whatever the kills and the number of
workers. The last step renames the finished folder to ``ROOT/HASH``, the hash being that of its content.

``ROOT/index/FINGERPRINT.json`` maps (recipe, path, size and modification time of each source file) to the hash: a
second build looks at the files' times and does nothing else.

Trade-offs: reading is parallel over files, so one huge file is read by one process (encoding it is parallel); a file
changed without a change of size and time goes unnoticed; hash and lengths of all documents are held in memory (about
100 bytes each); a build needs about twice the size of its text on disk.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from armillary.corpus.demo import DEMO_DOMAINS
from armillary.corpus.documents import HASH_BYTES
from armillary.corpus.pool import run_tasks, worker_processes
from armillary.corpus.shards import FORMAT, Corpus, DomainManifest, Manifest, ShardFile, shard_name
from armillary.corpus.sources import Problem, SourceFile, find_files
from armillary.corpus.split import DUPLICATE, SET_ASIDE, TRAIN, VALIDATION, DomainDocuments, split_documents
from armillary.corpus.tasks import (
    PROBLEMS_KEPT,
    EncodeTask,
    ReadTask,
    encode_piece,
    group_files,
    read_group,
)
from armillary.corpus.tokenizer import Encoder, read_tokenizer_file, train_bpe
from armillary.files import sync, write_file
from armillary.recipe import ArmillaryError, CorpusSpec, DomainSpec, UsageError, canonical_hash

SAMPLE_BYTES = 2 << 20  # text per domain that the tokenizer is trained on
SAMPLE_PIECES = 64  # pieces per domain that this text is taken from
SMALL_BYTES = 4 << 20  # sources below this are built without starting processes

Progress = Callable[[str, int, int], None]


def build_corpus(
    spec: CorpusSpec, root: Path, *, workers: int | None = None, progress: Progress | None = None
) -> Corpus:
    """Build ``spec`` into ``root/<hash>/`` and open it; at once where it is there and its sources have not changed.

    Args:
        spec: domains, tokenizer and split.
        root: folder of corpora, made where it is missing.
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
    if built := _already_built(root, fingerprint):
        # Left where a kill came between the last two steps of a build.
        shutil.rmtree(folder, ignore_errors=True)
        return built
    size = sum(file.size for files, _ in found.values() for file in files)
    count = workers or (1 if size < SMALL_BYTES else os.cpu_count() or 1)
    try:
        root.mkdir(parents=True, exist_ok=True)
        # One build at a time in a root: a second one of the same corpus then finds it done.
        with open(root / ".lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if built := _already_built(root, fingerprint):
                return built
            with worker_processes(count) as executor:
                path = _build(spec, found, tokenizer_json, folder, executor, progress or (lambda *_: None))
            write_file(root / "index" / f"{fingerprint}.json", json.dumps({"hash": path.name}).encode())
            shutil.rmtree(folder)
            return Corpus.open(path)
    except UsageError:
        # The sources must change, and then these parts belong to no build.
        shutil.rmtree(folder, ignore_errors=True)
        raise
    except BrokenProcessPool as error:
        raise ArmillaryError(
            f"{folder}: a worker process died; finished parts are kept, build again to go on. Out of memory: use fewer "
            "workers. A script from standard input, or that calls build_corpus outside of "
            "if __name__ == '__main__': use workers=1"
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


@dataclass(frozen=True)
class _ReadDomain:
    """A domain after reading: its pieces, the hash and length of each document, and what was wrong."""

    name: str
    spec: DomainSpec
    pieces: list[Path]
    rows: list[int]  # documents of each piece
    hashes: NDArray[np.bytes_]
    chars: NDArray[np.int64]
    bytes: NDArray[np.int64]
    cut: int
    problem_count: int
    problems: list[str]


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
            for j, group in enumerate(group_files(found[name][0]))
        ]
        for i, (name, domain) in enumerate(spec.domains.items())
    }
    all_reads = [task for tasks in reads.values() for task in tasks]
    run_tasks(read_group, all_reads, executor, lambda done, total: progress("read", done, total))
    domains = [_gather(name, domain, reads[name], found[name][1]) for name, domain in spec.domains.items()]
    documents = [DomainDocuments(d.name, d.spec.train, d.hashes, d.chars) for d in domains]
    fates = split_documents(documents, spec.validation_share, spec.validation_chars)

    tokenizer_file = folder / "tokenizer.json"
    if not tokenizer_file.exists():
        progress("tokenizer", 0, 1)
        if tokenizer_json is None:
            training = [(d, fate) for d, fate in zip(domains, fates, strict=True) if d.spec.train]
            sample = (text for domain, fate in training for text in _sample(domain, fate))
            tokenizer_json = train_bpe(sample, spec.tokenizer.vocab_size)
        write_file(tokenizer_file, tokenizer_json.encode())
    progress("tokenizer", 1, 1)

    encodes = [
        [
            EncodeTask(
                piece, part.tobytes(), tokenizer_file, folder / "encode" / f"{piece.stem}.npz", piece.stat().st_size
            )
            for piece, part in zip(d.pieces, np.split(fate, np.cumsum(d.rows)[:-1]), strict=True)
        ]
        for d, fate in zip(domains, fates, strict=True)
    ]
    all_encodes = [task for tasks in encodes for task in tasks]
    run_tasks(encode_piece, all_encodes, executor, lambda done, total: progress("encode", done, total))

    out = folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    shards = {}
    for done, (domain, tasks) in enumerate(zip(domains, encodes, strict=True)):
        progress("assemble", done, len(domains))
        shards[domain.name] = _assemble(out, domain, [task.output for task in tasks])
    manifest = _manifest(spec, tokenizer_file.read_bytes(), domains, fates, shards)
    write_file(out / manifest.tokenizer.path, tokenizer_file.read_bytes())
    write_file(out / "manifest.json", (manifest.model_dump_json(indent=1) + "\n").encode())
    path = folder.parent / manifest.hash
    if path.exists():
        # The same content from other files: keep the shards, and say where they came from this time.
        (out / "manifest.json").replace(path / "manifest.json")
    else:
        out.rename(path)
    sync(folder.parent)
    progress("assemble", len(domains), len(domains))
    return path


def _gather(name: str, spec: DomainSpec, tasks: list[ReadTask], problems: list[Problem]) -> _ReadDomain:
    summaries: list[dict[str, Any]] = [json.loads(task.output.read_bytes()) for task in tasks]
    listed = [problem.message for problem in problems] + [text for s in summaries for text in s["problems"]]
    pieces = [task.piece(k) for task, s in zip(tasks, summaries, strict=True) for k in range(s["pieces"])]
    if not pieces:
        shown = "".join(f"\n  {problem}" for problem in listed[:5])
        raise UsageError(f"domain '{name}': source {spec.source} holds no usable text{shown}")
    tables = [pq.read_table(piece, columns=["hash", "chars", "bytes"]) for piece in pieces]
    table = pa.concat_tables(tables)
    hashes = table["hash"].combine_chunks()
    return _ReadDomain(
        name=name,
        spec=spec,
        pieces=pieces,
        rows=[part.num_rows for part in tables],
        hashes=np.frombuffer(hashes.buffers()[1], dtype=f"S{HASH_BYTES}", count=len(hashes)),
        chars=table["chars"].to_numpy(),
        bytes=table["bytes"].to_numpy(),
        cut=sum(s["cut"] for s in summaries),
        problem_count=len(problems) + sum(s["problem_count"] for s in summaries),
        problems=listed[:PROBLEMS_KEPT],
    )


def _sample(domain: _ReadDomain, fate: NDArray[np.uint8]) -> Iterator[str]:
    """About SAMPLE_BYTES of a domain's training documents: those with the lowest hashes, which is a fair sample."""
    ends = np.cumsum(domain.rows)
    used = np.unique(np.linspace(0, len(ends) - 1, min(len(ends), SAMPLE_PIECES)).astype(int))
    piece_of = np.repeat(np.arange(len(ends)), domain.rows)
    training = np.flatnonzero((fate == TRAIN) & np.isin(piece_of, used))
    by_hash = training[np.argsort(domain.hashes[training], kind="stable")]
    before = np.cumsum(domain.bytes[by_hash]) - domain.bytes[by_hash]
    chosen = np.sort(by_hash[before < SAMPLE_BYTES])
    for index in used:
        rows = chosen[piece_of[chosen] == index] - (ends[index] - domain.rows[index])
        yield from pq.read_table(domain.pieces[index], columns=["text"])["text"].take(rows).to_pylist()


def _assemble(out: Path, domain: _ReadDomain, parts: list[Path]) -> tuple[ShardFile, ...]:
    """Write the shards of a domain: its encoded pieces one after the other."""
    name = shard_name(domain.name)
    files = {"validation": f"validation/{name}.bin", "bytes": f"validation/{name}.bytes"}
    if domain.spec.train:
        files = {"train": f"train/{name}.bin", **files}
    shards = []
    for key, file in files.items():
        digest = hashlib.sha256()
        path = out / file
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "wb") as stream:
            for part in parts:
                with np.load(part, allow_pickle=False) as arrays:
                    data = arrays[key].tobytes()
                digest.update(data)
                stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        sync(path.parent)
        shards.append(ShardFile(path=file, bytes=path.stat().st_size, sha256=digest.hexdigest()))
    return tuple(shards)


def _manifest(
    spec: CorpusSpec,
    tokenizer: bytes,
    domains: list[_ReadDomain],
    fates: list[NDArray[np.uint8]],
    shards: dict[str, tuple[ShardFile, ...]],
) -> Manifest:
    encoder = Encoder(tokenizer.decode())
    width = np.dtype(encoder.dtype).itemsize
    entries = {}
    for domain, fate in zip(domains, fates, strict=True):
        name, source = domain.name, domain.spec.source
        counts = np.bincount(fate, minlength=4).tolist()
        tokens = {file.path.split("/")[0]: file.bytes // width for file in shards[name] if file.path.endswith(".bin")}
        entries[name] = DomainManifest(
            source=source,
            licence=DEMO_DOMAINS[source.removeprefix("demo:")].licence if source.startswith("demo:") else None,
            train=domain.spec.train,
            documents=len(fate),
            cut=domain.cut,
            duplicates=counts[DUPLICATE],
            set_aside=counts[SET_ASIDE],
            train_documents=counts[TRAIN],
            train_tokens=tokens.get("train", 0),
            train_bytes=int(domain.bytes[fate == TRAIN].sum()),
            validation_documents=counts[VALIDATION],
            validation_tokens=tokens["validation"],
            validation_bytes=int(domain.bytes[fate == VALIDATION].sum()),
            files=shards[name],
            problem_count=domain.problem_count,
            problems=tuple(domain.problems),
        )
    sha256 = hashlib.sha256(tokenizer).hexdigest()
    split = {
        "validation_share": spec.validation_share,
        "validation_chars": spec.validation_chars,
        "max_document_chars": spec.max_document_chars,
    }
    content = {
        "format": FORMAT,
        "tokenizer": sha256,
        "domains": [[name, entry.train, [file.sha256 for file in entry.files]] for name, entry in entries.items()],
        "split": split,
    }
    return Manifest(
        hash=canonical_hash(content),
        dtype=encoder.dtype,
        vocab_size=encoder.vocab_size,
        end_of_text=encoder.end,
        end_of_text_id=encoder.end_id,
        validation_share=spec.validation_share,
        validation_chars=spec.validation_chars,
        max_document_chars=spec.max_document_chars,
        tokenizer=ShardFile(path="tokenizer.json", bytes=len(tokenizer), sha256=sha256),
        domains=entries,
    )
