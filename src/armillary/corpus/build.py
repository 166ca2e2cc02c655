"""Building a corpus: read, find near duplicates, split, train the tokenizer, encode, assemble.

Work is split into tasks: a group of source files to read, or a piece of 4 MB of text to encode. Each task writes one
file atomically into ``ROOT/build-FINGERPRINT/``. A killed build resumes from the finished files. Each file depends only
on the sources and the recipe, so the result is byte-identical for any kills and any number of workers. The last step
renames the finished folder to ``ROOT/HASH``, the hash of its content.

``ROOT/index/FINGERPRINT.json`` maps the recipe and each source file's path, size and modification time to the hash. A
second build only compares these. A second entry maps the recipe and the content of each source file to the same hash.
If the times are new, as in a copied workspace, the files are hashed and not read again. The first entry lists the files
that could not be read for a possibly temporary cause, and each later build retries them. A corpus of format 1 is found
by the fingerprint of that format and used unchanged, so an upgrade of the program does not change a recipe's corpus.

Trade-offs:

- Reading is parallel over files, so one process reads one huge file (encoding it is parallel).
- A file changed without a change of size and time is not noticed.
- Hashes and lengths of all documents are held in memory (about 150 bytes each).
- A build needs about twice the size of its text on disk.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from armillary.corpus.contents import source_hashes, unchanged
from armillary.corpus.demo import DEMO_DOMAINS
from armillary.corpus.documents import HASH_BYTES
from armillary.corpus.find import SourceFile, find_files, old_files
from armillary.corpus.index import IndexEntry, read_index, read_old_index, write_index
from armillary.corpus.manifest import (
    FORMAT,
    DomainManifest,
    Manifest,
    ShardFile,
    is_hash,
    read_manifest,
    shard_paths,
    write_manifest,
)
from armillary.corpus.near import BINS, near_duplicates
from armillary.corpus.pool import run_tasks, worker_processes
from armillary.corpus.problems import Problem, ProblemList
from armillary.corpus.shards import Corpus
from armillary.corpus.split import DUPLICATE, SET_ASIDE, TRAIN, VALIDATION, Documents, DomainDocuments, DomainSplit
from armillary.corpus.tasks import (
    EncodeTask,
    ReadTask,
    documents_file,
    encode_piece,
    group_files,
    read_group,
    read_tokenizer,
    write_tokenizer,
)
from armillary.corpus.tokenizer import END_OF_TEXT, Encoder, read_tokenizer_file, train_bpe
from armillary.files import sync, write_file
from armillary.recipe import (
    ArmillaryError,
    CorpusSpec,
    DamagedFileError,
    DomainSpec,
    UsageError,
    canonical_hash,
    lock,
)

SAMPLE_BYTES = 2 << 20  # text per domain that the tokenizer is trained on
SAMPLE_PIECES = 64  # pieces per domain that this text is taken from
SMALL_BYTES = 4 << 20  # sources below this are built without starting processes

Progress = Callable[[str, int, int], None]
Found = dict[str, tuple[list[SourceFile], list[Problem]]]
Chosen = tuple[str, str]  # a tokenizer.json, and its token that ends a text


def build_corpus(
    spec: CorpusSpec, root: Path, *, workers: int | None = None, progress: Progress | None = None
) -> Corpus:
    """Build ``spec`` into ``root/<hash>/`` and open it; an existing corpus with unchanged sources is only opened.

    Args:
        spec: domains, tokenizer and split.
        root: folder of corpora, created if missing.
        workers: processes to use; by default one per CPU core, and none beside the caller's for small sources.
        progress: called in this process with (stage, done, total); bytes in the stages "read" and "encode".

    Raises:
        UsageError: a source is missing, holds no text, or too little to split; a wrong tokenizer file.
        DamagedFileError: the corpus of an earlier build is damaged.
        ForeignFileError: the corpus was written by a newer version of this program.
        ArmillaryError: the disk is full, or a worker was killed. Finished parts are kept, and the next call resumes.
    """
    if old := _built_by_format_1(spec, root):
        return old
    # The recipe's results folder is not read as text, even if it lies inside a source.
    inside = [root, root.parent]
    real = {path: Path(os.path.realpath(path)) for path in inside}  # unlike ``resolve`` it takes links in a circle
    own = {
        name: [path for path in inside if Path(os.path.realpath(domain.source)) in real[path].parents]
        for name, domain in spec.domains.items()
    }
    found = {name: find_files(name, domain, own[name]) for name, domain in spec.domains.items()}
    chosen = None
    if spec.tokenizer.file is not None:
        chosen = read_tokenizer_file(Path(spec.tokenizer.file), spec.tokenizer.end)
    # The licence does not change the text.
    asked = spec.model_dump(mode="json", exclude={"domains": {name: {"licence"} for name in spec.domains}})
    request = {
        "format": FORMAT,
        "order": list(spec.domains),  # decides which domain keeps a text that two of them have
        "spec": asked,
        "tokenizer": chosen and [hashlib.sha256(chosen[0].encode()).hexdigest(), chosen[1]],
        "files": {name: [[f.path, f.size, f.version] for f in files] for name, (files, _) in found.items()},
    }
    fingerprint = canonical_hash(request)
    folder = root / f"build-{fingerprint}"
    try:
        if built := _already_built(spec, root, fingerprint):
            # Left by a kill between the last two steps of a build.
            shutil.rmtree(folder, ignore_errors=True)
            return built
        size = sum(file.size for files, _ in found.values() for file in files)
        count = workers or (1 if size < SMALL_BYTES else os.cpu_count() or 1)
        (root / "index").mkdir(parents=True, exist_ok=True)
        # One build at a time in a root, so that a second build of the same corpus finds it done.
        with open(root / ".lock", "w") as held:
            lock(held.fileno(), root / ".lock", wait=True)
            if built := _already_built(spec, root, fingerprint):
                return built
            report = progress or (lambda *_: None)
            files = [file for files, _ in found.values() for file in files]
            hashes = source_hashes(root, files, lambda done, total: report("hash", done, total))
            content = hashes and _content_fingerprint(request, found, hashes)
            if content and (built := _built_elsewhere(spec, root, content)):
                write_index(root, fingerprint, IndexEntry(built.hash))
                return built
            with worker_processes(count) as executor:
                entry = _build(spec, found, chosen, folder, executor, report)
            write_index(root, fingerprint, entry)
            if content and not entry.unreadable and unchanged(files):
                write_index(root, content, IndexEntry(entry.hash))
            shutil.rmtree(folder)
            return Corpus.open(root / entry.hash)
    except UsageError:
        # The user must change the sources, and then no build can use these parts.
        shutil.rmtree(folder, ignore_errors=True)
        raise
    except BrokenProcessPool as error:
        raise ArmillaryError(
            f"{folder}: a worker process died; finished parts are kept, build again to resume. If memory ran out, use "
            "fewer workers. In a script read from standard input, or one that calls build_corpus outside "
            "if __name__ == '__main__', use workers=1"
        ) from error
    except OSError as error:
        raise ArmillaryError(
            f"{error.filename or folder}: {error.strerror or error}; finished parts are kept in {folder}: "
            "free space or fix permissions, then build again to resume"
        ) from error


def _already_built(spec: CorpusSpec, root: Path, fingerprint: str) -> Corpus | None:
    """The corpus of an earlier build, with the licences of this recipe; None if it must be built."""
    try:
        entry = read_index(root, fingerprint)
    except DamagedFileError:
        entry = None  # the sources are read again and give the same corpus
    # Files that were unreadable may be readable now.
    if entry is None or any(_is_readable(os.fsdecode(unquote_to_bytes(path))) for path in entry.unreadable):
        return None
    return _opened(spec, root, entry)


def _content_fingerprint(request: dict[str, Any], found: Found, hashes: dict[str, str]) -> str:
    """The fingerprint of ``request`` with the files' content instead of their paths and times."""
    spec = request["spec"]
    domains = {name: {**domain, "source": ""} for name, domain in spec["domains"].items()}
    return "content-" + canonical_hash(
        {
            **request,
            "spec": {**spec, "domains": domains, "tokenizer": {**spec["tokenizer"], "file": None}},
            "files": {name: [[f.reader, f.size, hashes[f.path]] for f in files] for name, (files, _) in found.items()},
        }
    )


def _built_elsewhere(spec: CorpusSpec, root: Path, fingerprint: str) -> Corpus | None:
    """The corpus built from files of the same content, with its manifest updated to the new paths; None without one."""
    try:
        entry = read_index(root, fingerprint)
    except DamagedFileError:
        return None
    corpus = None if entry is None else _opened(spec, root, entry)
    if corpus is None:
        return None
    sources: dict[str, dict[str, str | None]] = {
        name: {"source": domain.source} for name, domain in spec.domains.items()
    }
    return _with_words(corpus, sources)


def _opened(spec: CorpusSpec, root: Path, entry: IndexEntry) -> Corpus | None:
    """The corpus of an entry, with the licences of the recipe; None if it was deleted."""
    path = root / entry.hash
    if not path.exists():
        return None
    return _with_words(Corpus.open(path), {name: {"licence": _licence(spec.domains[name])} for name in spec.domains})


def _built_by_format_1(spec: CorpusSpec, root: Path) -> Corpus | None:
    """The corpus of format 1 for the same recipe and unchanged files.

    Raises:
        DamagedFileError: this corpus or its entry in the index is damaged.
    """
    old, damaged = [], False
    for path in sorted(root.glob("*")) if root.is_dir() else []:
        if is_hash(path.name):
            try:
                manifest = read_manifest(path)
                old += [manifest] if manifest.format == 1 else []
            except ArmillaryError:
                damaged = True
    # Format 1 may have written sources and tokenizer differently, for instance relative to a folder. The fingerprint
    # also holds the absolute paths of all files, so a matching entry belongs to the same files.
    written = [{name: d.source for name, d in m.domains.items()} for m in old if list(m.domains) == list(spec.domains)]
    wanted = {name: domain.source for name, domain in spec.domains.items()}
    tokenizers = [spec.tokenizer.file, spec.tokenizer.file and os.path.relpath(spec.tokenizer.file)]
    for sources, tokenizer in itertools.product(
        [wanted, *written] if old or damaged else [], dict.fromkeys(tokenizers)
    ):
        fingerprint = _fingerprint_of_format_1(spec, sources, tokenizer)
        if fingerprint and (entry := read_old_index(root, fingerprint)):
            corpus = _opened(spec, root, entry)
            # Neither was part of that fingerprint.
            if (
                corpus
                and list(corpus.domains) == list(spec.domains)
                and spec.tokenizer.end
                in (
                    None,
                    corpus.manifest.end_of_text,
                )
            ):
                return corpus
    return None


def _fingerprint_of_format_1(spec: CorpusSpec, sources: dict[str, str], tokenizer: str | None) -> str | None:
    asked = spec.model_dump(
        mode="json", exclude={"domains": {name: {"licence"} for name in spec.domains}, "tokenizer": {"end"}}
    )
    for name, source in sources.items():
        asked["domains"][name]["source"] = source
    asked["tokenizer"]["file"] = tokenizer
    try:
        text = None if spec.tokenizer.file is None else Path(spec.tokenizer.file).read_bytes()
        files = {name: old_files(domain) for name, domain in spec.domains.items()}
    except OSError:
        return None
    return canonical_hash(
        {
            "format": 1,
            "spec": asked,
            "tokenizer": None if text is None else hashlib.sha256(text).hexdigest(),
            "files": {name: [[f.path, f.size, f.version] for f in found] for name, found in files.items()},
        }
    )


def _is_readable(path: str) -> bool:
    try:
        with open(path, "rb") as stream:
            stream.read(1)
    except OSError:
        return False
    return True


def _licence(domain: DomainSpec) -> str | None:
    if domain.licence is None and domain.source.startswith("demo:"):
        return DEMO_DOMAINS[domain.source.removeprefix("demo:")].licence
    return domain.licence


def _with_words(corpus: Corpus, words: dict[str, dict[str, str | None]]) -> Corpus:
    """``corpus`` with the recipe's fields of each domain in its manifest, which is rewritten only if they differ."""
    manifest = corpus.manifest
    domains = {name: domain.model_copy(update=words[name]) for name, domain in manifest.domains.items()}
    if domains == manifest.domains:
        return corpus
    try:
        write_manifest(corpus.path, manifest.model_copy(update={"domains": domains}))
    except OSError as error:
        raise ArmillaryError(
            f"{corpus.path / 'manifest.json'}: the recipe's licences and sources cannot be written "
            f"({error.strerror}); make the folder writable"
        ) from error
    return Corpus.open(corpus.path)


@dataclass(frozen=True)
class _ReadDomain:
    """A domain after reading: its pieces, its parts and its whole documents."""

    name: str
    spec: DomainSpec
    pieces: list[Path]
    rows: list[int]  # parts of each piece
    hashes: NDArray[np.bytes_]  # of each part, as chars, bytes and document
    chars: NDArray[np.int64]
    bytes: NDArray[np.int64]
    document: NDArray[np.int64]  # number of the document in the domain
    document_hashes: NDArray[np.bytes_]
    files: NDArray[np.int64] | None  # equal for documents that are blocks of one file; None where none are
    cut: int
    problems: ProblemList
    checksums: list[str]
    unreadable: list[str]


def _build(
    spec: CorpusSpec,
    found: Found,
    chosen: Chosen | None,
    folder: Path,
    executor: Executor | None,
    progress: Progress,
) -> IndexEntry:
    """All stages; returns the hash of the finished corpus, and the files that could not be read."""
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
    splits = _split(spec, domains, folder, lambda done, total: progress("near duplicates", done, total))
    for domain, split in zip(domains, splits, strict=True):
        if split.remark:
            domain.problems.add(Problem(domain.spec.source, split.remark, count=0))

    # The remaining stages depend on the pieces and the split, which a newly readable source may have changed.
    key = canonical_hash(
        [[d.checksums, hashlib.sha256(s.fates.tobytes()).hexdigest()] for d, s in zip(domains, splits, strict=True)]
    )
    folder_of_split = folder / f"split-{key}"
    tokenizer_file = folder_of_split / "tokenizer.json"
    progress("tokenizer", 0, 1)
    try:
        tokenizer = read_tokenizer(tokenizer_file)
    except (FileNotFoundError, DamagedFileError):
        tokenizer = chosen or _trained_tokenizer(spec, domains, splits)
        write_tokenizer(tokenizer_file, *tokenizer)
    progress("tokenizer", 1, 1)

    encodes = [
        [
            EncodeTask(
                piece,
                part.tobytes(),
                tokenizer_file,
                folder_of_split / "encode" / f"{piece.stem}.npz",
                piece.stat().st_size,
            )
            for piece, part in zip(d.pieces, np.split(s.fates, np.cumsum(d.rows)[:-1]), strict=True)
        ]
        for d, s in zip(domains, splits, strict=True)
    ]
    all_encodes = [task for tasks in encodes for task in tasks]
    run_tasks(encode_piece, all_encodes, executor, lambda done, total: progress("encode", done, total))

    out = folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    shards = {}
    for done, (domain, tasks) in enumerate(zip(domains, encodes, strict=True)):
        progress("assemble", done, len(domains))
        shards[domain.name] = _assemble(out, domain, [task.output for task in tasks])
    manifest = _manifest(spec, tokenizer, domains, splits, shards)
    write_file(out / manifest.tokenizer.path, tokenizer[0].encode())
    write_manifest(out, manifest)
    path = folder.parent / manifest.hash
    if _holds(path):
        # The same content from other files: keep the shards and update the sources in the manifest.
        (out / "manifest.json").replace(path / "manifest.json")
    else:
        out.rename(path)
    sync(folder.parent)
    progress("assemble", len(domains), len(domains))
    return IndexEntry(manifest.hash, tuple(path for domain in domains for path in domain.unreadable))


def _holds(path: Path) -> bool:
    """Whether a folder holds the corpus of its name; a damaged corpus is removed.

    Raises:
        ForeignFileError: it holds a corpus of a newer format.
    """
    if not path.exists():
        return False
    try:
        Corpus.open(path)
    except DamagedFileError:
        shutil.rmtree(path)
        return False
    return True


def _gather(name: str, spec: DomainSpec, tasks: list[ReadTask], found: list[Problem]) -> _ReadDomain:
    summaries = [task.summary() for task in tasks]
    problems = ProblemList()
    for problem in found:
        problems.add(problem)
    for summary in summaries:
        problems.extend(summary["problems"])
    pieces = [task.piece(k) for task, s in zip(tasks, summaries, strict=True) for k in range(len(s["pieces"]))]
    if not pieces:
        shown = "".join(f"\n  {line}" for line in problems.lines()[:5])
        raise UsageError(f"domain '{name}': source {spec.source} has no usable text{shown}")
    tables = [pq.read_table(piece, columns=["hash", "chars", "bytes", "document"]) for piece in pieces]
    document_hashes, continues, first, documents = [], [], [], 0
    for piece in pieces:
        with np.load(documents_file(piece), allow_pickle=False) as arrays:
            document_hashes.append(arrays["hash"])
            continues.append(arrays["continues"])
        first.append(documents)
        documents += len(document_hashes[-1])
    table = pa.concat_tables(tables)
    hashes = table["hash"].combine_chunks()
    blocks = np.concatenate(continues)
    return _ReadDomain(
        name=name,
        spec=spec,
        pieces=pieces,
        rows=[part.num_rows for part in tables],
        hashes=np.frombuffer(hashes.buffers()[1], dtype=f"S{HASH_BYTES}", count=len(hashes)),
        chars=table["chars"].to_numpy(),
        bytes=table["bytes"].to_numpy(),
        document=np.concatenate([t["document"].to_numpy() + n for t, n in zip(tables, first, strict=True)]),
        document_hashes=np.concatenate(document_hashes).reshape(-1).view(f"S{HASH_BYTES}"),
        files=np.cumsum(~blocks) - 1 if blocks.any() else None,
        cut=sum(s["cut"] for s in summaries),
        problems=problems,
        checksums=[checksum for s in summaries for sums in s["pieces"] for checksum in sums],
        unreadable=[path for s in summaries for path in s["unreadable"]],
    )


def _split(
    spec: CorpusSpec, domains: list[_ReadDomain], folder: Path, progress: Callable[[int, int], None]
) -> list[DomainSplit]:
    """Decide which parts train and validate. Signatures of all documents are kept in a file, not in memory."""
    documents = Documents(
        [
            DomainDocuments(d.name, d.spec.train, d.hashes, d.chars, d.document, d.document_hashes, d.files)
            for d in domains
        ]
    )
    file = folder / "signatures.u16"
    different, start, kept = documents.different, 0, 0
    with file.open("wb") as stream:
        for piece in (piece for domain in domains for piece in domain.pieces):
            with np.load(documents_file(piece), allow_pickle=False) as arrays:
                block = arrays["signature"]
            end = int(np.searchsorted(different, start + len(block)))
            stream.write(block[different[kept:end] - start].tobytes())
            start, kept = start + len(block), end
    signature = np.memmap(file, dtype=np.uint16, mode="r", shape=(len(different), BINS))
    near = near_duplicates(signature, documents.hashes(), progress)
    return documents.split(near, spec.validation_share, spec.validation_chars)


def _trained_tokenizer(spec: CorpusSpec, domains: list[_ReadDomain], splits: list[DomainSplit]) -> Chosen:
    training = [(d, s.fates) for d, s in zip(domains, splits, strict=True) if d.spec.train]
    sample = (text for domain, fates in training for text in _sample(domain, fates))
    return train_bpe(sample, spec.tokenizer.vocab_size), END_OF_TEXT


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
    """Write the shards of a domain by concatenating its encoded pieces."""
    shards = []
    for key, file in shard_paths(domain.name, domain.spec.train).items():
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
    tokenizer: Chosen,
    domains: list[_ReadDomain],
    splits: list[DomainSplit],
    shards: dict[str, tuple[ShardFile, ...]],
) -> Manifest:
    encoder = Encoder(*tokenizer)
    width = np.dtype(encoder.dtype).itemsize
    entries = {}
    for domain, split in zip(domains, splits, strict=True):
        name, fates = domain.name, split.fates
        counts = np.bincount(fates, minlength=4).tolist()
        tokens = {file.path.split("/")[0]: file.bytes // width for file in shards[name] if file.path.endswith(".bin")}
        entries[name] = DomainManifest(
            source=domain.spec.source,
            licence=_licence(domain.spec),
            train=domain.spec.train,
            documents=len(fates),
            whole_documents=split.whole_documents,
            cut=domain.cut,
            duplicates=counts[DUPLICATE],
            near_duplicates=split.near_duplicates,
            near_duplicates_moved=split.near_duplicates_moved,
            near_duplicates_in=split.near_duplicates_in,
            set_aside=counts[SET_ASIDE],
            train_documents=counts[TRAIN],
            train_tokens=tokens.get("train", 0),
            train_bytes=int(domain.bytes[fates == TRAIN].sum()),
            validation_documents=counts[VALIDATION],
            validation_tokens=tokens["validation"],
            validation_bytes=int(domain.bytes[fates == VALIDATION].sum()),
            files=shards[name],
            problem_count=domain.problems.count,
            problems=tuple(domain.problems.lines()),
        )
    data = tokenizer[0].encode()
    manifest = Manifest(
        hash="",
        dtype=encoder.dtype,
        vocab_size=encoder.vocab_size,
        end_of_text=encoder.end,
        end_of_text_id=encoder.end_id,
        validation_share=spec.validation_share,
        validation_chars=spec.validation_chars,
        max_document_chars=spec.max_document_chars,
        tokenizer=ShardFile(path="tokenizer.json", bytes=len(data), sha256=hashlib.sha256(data).hexdigest()),
        domains=entries,
    )
    return manifest.model_copy(update={"hash": manifest.content_hash()})
