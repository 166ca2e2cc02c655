"""Every file of a built corpus, damaged in every way: a clear error or the same corpus, never another one."""

import json
import os
import re
import shutil
import time
from pathlib import Path

import pytest

from armillary.corpus import Corpus, build_corpus, stamp, verify_corpus
from armillary.recipe import (
    ArmillaryError,
    CorpusSpec,
    DamagedFileError,
    DomainSpec,
    ForeignFileError,
    TokenizerSpec,
    write_sealed,
)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A recipe, and a folder of corpora with it and with a second corpus."""
    folder = tmp_path_factory.mktemp("verify")
    for name in "ab":
        lines = [json.dumps({"text": f"{name} says sentence number {i} of {i * i}"}) for i in range(30)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    specs = [
        CorpusSpec(
            domains={n: DomainSpec(source=str(folder / f"{n}.jsonl")) for n in names},
            tokenizer=TokenizerSpec(vocab_size=vocabulary),
        )
        for names, vocabulary in (("ab", 270), ("ba", 280))
    ]
    for spec in specs:
        build_corpus(spec, folder / "root", workers=1)
    return specs[0], build_corpus(specs[0], folder / "root", workers=1)


@pytest.fixture
def copy(built, tmp_path):
    """The recipe and a copy of its corpus, in a copy of the folder of corpora."""
    spec, corpus = built
    shutil.copytree(corpus.path.parent, tmp_path / "root")
    return spec, tmp_path / "root" / corpus.hash


def flip(path, other):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def flip_and_hide(path, other):
    """Change a bit and put the times back."""
    stat = path.stat()
    flip(path, other)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def age(path, other):
    """Make it a file of a later format, or of an unknown one."""
    if path.suffix == ".json" and path.name != "tokenizer.json":
        document = json.loads(path.read_text())
        document.pop("sha256", None)
        write_sealed(path, document | {"format": 99})
    else:
        path.write_bytes(b"ARM2" + path.read_bytes())


HARM = {
    "truncate": lambda path, other: path.write_bytes(path.read_bytes()[:-3]),
    "extend": lambda path, other: path.write_bytes(path.read_bytes() + b"\0"),
    "flip": flip,
    "flip and hide": flip_and_hide,
    "empty": lambda path, other: path.write_bytes(b""),
    "delete": lambda path, other: path.unlink(),
    "swap": lambda path, other: shutil.copy(other, path),
    "list": lambda path, other: path.write_text("[1]"),
    "deep": lambda path, other: path.write_text("[" * 100_000),
    "folder": lambda path, other: (path.unlink(), path.mkdir()),
    "age": age,
}
FILES = ["manifest.json", "tokenizer.json"] + [
    f"{split}/{name}" for split, end in (("train", "bin"), ("validation", "bin"), ("validation", "bytes"))
    for name in (f"a.{end}", f"b.{end}")
]  # fmt: skip


def another(path):
    """A file of the same kind: of the other corpus, or of the other domain."""
    if path.name.endswith(".json"):
        return next(p for p in path.parent.parent.glob(f"*/{path.name}") if p.parent != path.parent)
    return path.with_name({"a": "b", "b": "a"}[path.stem] + path.suffix)


@pytest.mark.parametrize("harm", HARM)
@pytest.mark.parametrize("file", FILES)
def test_a_damaged_file_is_found_named_and_kept(copy, file, harm):
    spec, path = copy
    other = another(path / file)
    HARM[harm](path / file, other)
    newer = harm == "age" and file == "manifest.json"
    before = (path / file).read_bytes() if (path / file).is_file() else None
    for read in (Corpus.open, lambda _: build_corpus(spec, path.parent, workers=1)):
        with pytest.raises(ForeignFileError if newer else ArmillaryError) as error:
            read(path)
        assert str(path) in str(error.value)
    (problem,) = verify_corpus(path)
    assert str(path) in str(problem.file) and problem.what and problem.remedy
    assert verify_corpus(path.parent) == [problem]
    assert ((path / file).read_bytes() if (path / file).is_file() else None) == before


@pytest.mark.parametrize("harm", HARM)
def test_a_damaged_index_is_made_again_from_the_sources(copy, harm):
    spec, path = copy
    entries = [p for p in (path.parent / "index").glob("*.json") if re.fullmatch(r"[0-9a-f]+\.json", p.name)]
    entry = next(p for p in entries if json.loads(p.read_text())["hash"] == path.name)
    HARM[harm](entry, next(p for p in entries if p != entry))
    found = [str(problem.file) for problem in verify_corpus(path.parent)]
    assert found == ([] if harm == "delete" else [str(entry)])
    if harm in ("age", "folder"):
        with pytest.raises(ArmillaryError, match=entry.name):
            build_corpus(spec, path.parent, workers=1)
        assert entry.exists()
    else:
        assert build_corpus(spec, path.parent, workers=1).hash == path.name
        assert verify_corpus(path.parent) == []


@pytest.mark.parametrize("name", ["content-*.json", "sources.json"])
@pytest.mark.parametrize("harm", [harm for harm in HARM if harm not in ("swap", "delete")])
def test_what_only_copies_need_is_named_when_damaged_and_hinders_no_build(copy, harm, name):
    spec, path = copy
    entry = sorted((path.parent / "index").glob(name))[0]
    HARM[harm](entry, entry)
    assert [str(problem.file) for problem in verify_corpus(path.parent)] == [str(entry)]
    assert build_corpus(spec, path.parent, workers=1, progress=lambda *call: pytest.fail(str(call))).hash == path.name


@pytest.mark.parametrize("harm", HARM)
def test_a_damaged_stamp_costs_a_comparison_only(copy, harm):
    _, path = copy
    stamps = sorted((path.parent / "index").glob("*.verified.json"))
    Corpus.open(path)
    stamp = path.parent / "index" / f"{path.name}.verified.json"
    HARM[harm](stamp, next(p for p in stamps if p != stamp))
    assert Corpus.open(path).hash == path.name
    flip(path / "train" / "a.bin", None)
    with pytest.raises(DamagedFileError, match=r"train/a\.bin: does not match its checksum"):
        Corpus.open(path)


def test_a_changed_digit_in_the_manifest_is_found(copy):
    _, path = copy
    text = (path / "manifest.json").read_text()
    tokens = json.loads(text)["domains"]["a"]["train_tokens"]
    (path / "manifest.json").write_text(text.replace(f'"train_tokens": {tokens}', f'"train_tokens": {tokens + 1}'))
    with pytest.raises(DamagedFileError, match="does not match its checksum"):
        Corpus.open(path)


def test_an_unchanged_corpus_is_not_hashed_again(copy, monkeypatch):
    _, path = copy
    hashed = []
    compare = stamp._content_problem
    monkeypatch.setattr(stamp, "_content_problem", lambda f, file: (hashed.append(file.path), compare(f, file))[1])
    Corpus.open(path)  # a copy: other inodes
    assert sorted(hashed) == sorted(FILES[1:])
    hashed.clear()
    Corpus.open(path)
    assert hashed == []
    moved = path.rename(path.with_name("elsewhere"))
    Corpus.open(moved)
    assert sorted(hashed) == sorted(FILES[1:])


def test_a_bit_changed_right_after_the_build_is_found(built, tmp_path):
    spec, _ = built
    corpus = build_corpus(spec, tmp_path / "root", workers=1)
    flip_and_hide(corpus.path / "train/a.bin", None)
    with pytest.raises(DamagedFileError, match=r"train/a\.bin"):
        build_corpus(spec, tmp_path / "root", workers=1)


def test_a_stamp_is_not_made_of_files_so_young_that_a_change_could_go_unnoticed(copy, monkeypatch):
    _, path = copy
    slept = []
    monkeypatch.setattr(time, "sleep", slept.append)
    monkeypatch.setattr(stamp, "CLOCK_TICK_S", 1000.0)
    Corpus.open(path)
    assert slept == [1000.0]


def test_a_read_only_place_is_opened_without_a_stamp(copy, monkeypatch):
    _, path = copy

    def read_only(*_):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(stamp, "write_sealed", read_only)
    assert Corpus.open(path).hash == path.name


def test_verify_names_every_damaged_file(copy):
    _, path = copy
    for file in FILES[1:4]:
        flip(path / file, None)
    assert [str(problem.file) for problem in verify_corpus(path)] == [str(path / file) for file in FILES[1:4]]
    with pytest.raises(DamagedFileError, match="2 more files of this corpus are damaged"):
        Corpus.open(path)


def test_verify_of_what_is_not_a_corpus(tmp_path):
    for path in (tmp_path, tmp_path / "none", Path(__file__)):
        (problem,) = verify_corpus(path)
        assert str(path) in str(problem)
