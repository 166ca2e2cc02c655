"""From text to shards: nothing lost, nothing twice, and the same bytes whatever happens on the way."""

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from armillary.corpus import DEMO_DOMAINS, Corpus, build, build_corpus, contents, sources, tasks
from armillary.recipe import ArmillaryError, CorpusSpec, DamagedFileError, DomainSpec, TokenizerSpec, UsageError


@pytest.fixture
def small_tasks(monkeypatch):
    """Cut the small corpus into many tasks, so that there is something to be interrupted between."""
    monkeypatch.setattr(tasks, "GROUP_BYTES", 8_000)
    monkeypatch.setattr(tasks, "PIECE_CHARS", 20_000)


def documents_of(corpus, name, split):
    """Texts of a split, decoded from its shard."""
    tokens = np.fromfile(corpus.path / corpus_file(corpus, name, split), dtype=corpus.manifest.dtype)
    ends = np.flatnonzero(tokens == corpus.manifest.end_of_text_id)
    assert ends[-1] == len(tokens) - 1
    decode = corpus.tokenizer().decode
    starts = [0, *(ends[:-1] + 1)]
    return [decode(tokens[a:b].tolist(), skip_special_tokens=False) for a, b in zip(starts, ends, strict=True)]


def corpus_file(corpus, name, split):
    files = [f.path for f in corpus.manifest.domains[name].files]
    return next(path for path in files if path.startswith(split) and path.endswith(".bin"))


def test_every_document_is_there_once(text_spec, text_sources, tmp_path):
    corpus = build_corpus(text_spec, tmp_path / "root")
    entry = corpus.manifest.domains["中文/zh"]
    trained = documents_of(corpus, "中文/zh", "train")
    held_out = documents_of(corpus, "中文/zh", "validation")
    files = {path.read_text(encoding="utf-8") for path in (text_sources / "zh").iterdir()}
    assert set(trained) | set(held_out) == files
    assert len(trained) + len(held_out) == len(files) == entry.documents
    assert (entry.train_documents, entry.validation_documents) == (len(trained), len(held_out))
    assert entry.train_bytes == sum(len(text.encode()) for text in trained)
    assert entry.train_tokens == len(corpus.train_tokens("中文/zh"))
    assert corpus.vocab_size == 400 and corpus.train_tokens("en").dtype == np.uint16

    english = [json.loads(line)["text"] for line in (text_sources / "en.jsonl").read_text().splitlines()]
    parts = documents_of(corpus, "en", "train") + documents_of(corpus, "en", "validation")
    assert sorted(c for part in parts for c in part) == sorted(c for text in english for c in text)
    assert all(len(part) <= 300 for part in parts)
    assert corpus.manifest.domains["en"].cut == sum(len(text) > 300 for text in english) > 0

    novel = corpus.manifest.domains["novel"]
    assert (novel.train_tokens, novel.train, novel.set_aside) == (0, False, 0)
    assert "".join(documents_of(corpus, "novel", "validation")) == (text_sources / "novel.md").read_text()
    whole = corpus.validation("novel", novel.validation_tokens - 1, 1)
    first = whole.tokens[0, :1].tolist()
    assert whole.bytes == novel.validation_bytes - len(corpus.tokenizer().decode(first))


def test_duplicates_are_dropped_across_domains_and_counted(tmp_path):
    for name, texts in {
        "a": ["one", "two", "three", "t  wo"],
        "b": ["one ", "four", "five", "four"],
        "x": ["two"],
    }.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    spec = CorpusSpec(
        domains={n: DomainSpec(source=str(tmp_path / f"{n}.jsonl"), train=n != "x") for n in "abx"},
        tokenizer=TokenizerSpec(vocab_size=257),
    )
    corpus = build_corpus(spec, tmp_path / "root")
    assert {n: d.duplicates for n, d in corpus.manifest.domains.items()} == {"a": 1, "b": 2, "x": 0}
    assert documents_of(corpus, "x", "validation") == ["two"]
    assert sorted(documents_of(corpus, "a", "train") + documents_of(corpus, "a", "validation")) == [
        "one",
        "t  wo",
        "three",
    ]


def test_a_second_build_does_nothing(text_spec, text_sources, tmp_path, digests):
    root = tmp_path / "root"
    first = build_corpus(text_spec, root)
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    stages = []
    again = build_corpus(text_spec, root, progress=lambda *call: stages.append(call))
    assert again.path == first.path and not stages
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before
    # A corpus that was deleted is built again, and to the same bytes.
    built = digests(first.path)
    shutil.rmtree(first.path)
    assert digests(build_corpus(text_spec, root).path) == built


def test_hash_is_of_the_content_and_not_of_the_place(text_spec, text_sources, tmp_path):
    first = build_corpus(text_spec, tmp_path / "root")
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(text_sources, elsewhere)
    moved = text_spec.model_copy(
        update={
            "domains": {
                name: d.model_copy(update={"source": d.source.replace(str(text_sources), str(elsewhere))})
                for name, d in text_spec.domains.items()
            }
        }
    )
    second = build_corpus(moved, tmp_path / "root")
    assert second.path == first.path
    assert second.manifest.domains["novel"].source.startswith(str(elsewhere))
    (elsewhere / "novel.md").write_text("another text")
    assert build_corpus(moved, tmp_path / "root").hash != first.hash
    assert Corpus.open(first.path).hash == first.hash


def copied(spec, sources, root, place, copy=shutil.copy2):
    """Sources and corpora copied to ``place``; the recipe over there, and the folder of corpora."""
    shutil.copytree(sources, place / "text", copy_function=copy)
    shutil.copytree(root, place / "root", copy_function=copy)
    domains = {
        name: domain.model_copy(update={"source": domain.source.replace(str(sources), str(place / "text"))})
        for name, domain in spec.domains.items()
    }
    return spec.model_copy(update={"domains": domains}), place / "root"


@pytest.mark.parametrize("copy", [shutil.copy2, shutil.copyfile], ids=["times kept", "new times"])
def test_a_copy_of_corpus_and_sources_is_not_read_again(text_spec, text_sources, tmp_path, copy, monkeypatch):
    first = build_corpus(text_spec, tmp_path / "root")
    spec, root = copied(text_spec, text_sources, tmp_path / "root", tmp_path / "there", copy)
    shutil.rmtree(text_sources)
    shutil.rmtree(tmp_path / "root")
    stages = []
    moved = build_corpus(spec, root, progress=lambda *call: stages.append(call[0]))
    assert moved.hash == first.hash and moved.path == root / first.hash
    # Only new times make a file worth hashing, and a second call looks at times alone.
    assert set(stages) == ({"hash"} if copy is shutil.copyfile else set())
    assert moved.manifest.domains["novel"].source == str(tmp_path / "there" / "text" / "novel.md")
    monkeypatch.setattr(contents, "_hash", None)
    assert build_corpus(spec, root, progress=lambda *call: pytest.fail(str(call))).hash == first.hash


@pytest.mark.parametrize("name", ["novel.md", "zh/07.txt", "en.jsonl"])
def test_a_changed_source_in_a_copy_is_read(text_spec, text_sources, tmp_path, name):
    first = build_corpus(text_spec, tmp_path / "root")
    spec, root = copied(text_spec, text_sources, tmp_path / "root", tmp_path / "there")
    file = tmp_path / "there" / "text" / name
    text = file.read_text()
    file.write_text(text.replace("model", "modes") if name != "zh/07.txt" else text.replace("7", "8"))
    assert build_corpus(spec, root).hash != first.hash
    file.write_text(text)
    assert build_corpus(spec, root, progress=lambda stage, *_: stage == "hash" or pytest.fail(stage)).hash == first.hash


@pytest.mark.parametrize("damage", ["torn", "newer", "gone"])
def test_a_copy_without_its_hashes_of_sources_hashes_them(text_spec, text_sources, tmp_path, damage):
    first = build_corpus(text_spec, tmp_path / "root")
    spec, root = copied(text_spec, text_sources, tmp_path / "root", tmp_path / "there")
    file = root / "index" / "sources.json"
    if damage == "gone":
        file.unlink()
    else:
        file.write_text('{"format": 99}' if damage == "newer" else file.read_text()[:-20])
    stages = []
    assert build_corpus(spec, root, progress=lambda *call: stages.append(call[0])).hash == first.hash
    assert set(stages) == {"hash"}
    assert (file.read_text() == '{"format": 99}') is (damage == "newer")  # left for the version that wrote it


def test_a_source_that_changes_while_it_is_read_is_not_kept_by_content(text_spec, text_sources, tmp_path):
    novel = text_sources / "novel.md"
    before = novel.read_text()

    def change(stage, done, total):
        if stage == "read" and done == 0:
            novel.write_text("Another text altogether, written while the build reads.\n" * 40)

    other = build_corpus(text_spec, tmp_path / "root", progress=change)
    novel.write_text(before)
    assert build_corpus(text_spec, tmp_path / "root").hash != other.hash


def test_progress_goes_through_the_stages_to_the_end(text_spec, tmp_path, small_tasks):
    calls = []
    build_corpus(text_spec, tmp_path / "root", workers=1, progress=lambda *call: calls.append(call))
    assert list(dict.fromkeys(stage for stage, _, _ in calls)) == [
        "hash",
        "read",
        "near duplicates",
        "tokenizer",
        "encode",
        "assemble",
    ]
    for stage in ("read", "encode", "assemble"):
        done = [call[1] for call in calls if call[0] == stage]
        total = {call[2] for call in calls if call[0] == stage}
        assert done == sorted(done) and len(done) > 2
        assert done[0] == 0 and {done[-1]} == total


def test_worker_processes_give_the_same_bytes(text_spec, tmp_path, small_tasks, digests):
    alone = build_corpus(text_spec, tmp_path / "one", workers=1)
    assert digests(build_corpus(text_spec, tmp_path / "two", workers=2).path) == digests(alone.path)


def test_a_file_system_without_locks_is_named(text_spec, tmp_path, monkeypatch):
    def refuse(file, how):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", refuse)
    with pytest.raises(ArmillaryError, match=r"\.lock: this file system does not support locks .*NFSv4"):
        build_corpus(text_spec, tmp_path, workers=1)


def test_a_full_disk_at_any_point_keeps_what_was_done(text_spec, tmp_path, small_tasks, digests, monkeypatch):
    expected = digests(build_corpus(text_spec, tmp_path / "expected", workers=1).path)
    fsync, root, calls, failures = os.fsync, tmp_path / "root", [0], 0
    limit = 1

    def failing(descriptor):
        calls[0] += 1
        if calls[0] == limit:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", failing)
    # Fail at the first write, the second, ...: each build goes on from what the ones before it left.
    while True:
        calls[0] = 0
        try:
            corpus = build_corpus(text_spec, root, workers=1)
            break
        except ArmillaryError as error:
            assert "No space left on device; finished parts are kept in" in str(error)
            failures += 1
            limit += 1
    assert failures > 10
    assert digests(corpus.path) == expected
    assert sorted(path.name for path in root.iterdir()) == sorted([".lock", "index", corpus.hash])


BUILD = """
import os, signal, sys
from pathlib import Path
from armillary.corpus import build_corpus, tasks
from armillary.recipe import CorpusSpec

if __name__ == "__main__":
    tasks.GROUP_BYTES, tasks.PIECE_CHARS = 8_000, 20_000
    fsync, left = os.fsync, [int(sys.argv[3])]

    def killing(descriptor):
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        fsync(descriptor)

    os.fsync = killing
    build_corpus(CorpusSpec.model_validate_json(sys.argv[1]), Path(sys.argv[2]), workers=int(sys.argv[4]))
"""


def start_build(spec, root, kill_at, workers):
    arguments = [sys.executable, "-c", BUILD, spec.model_dump_json(), str(root), str(kill_at), str(workers)]
    # One thread here and all of them in the builds compared with: the tokenizer must not depend on that.
    return subprocess.Popen(arguments, env=os.environ | {"RAYON_NUM_THREADS": "1"})


def killed_and_finished(spec, root, kill_at):
    """Build in a process that is killed with -9 at its ``kill_at``-th fsync; finish here. Whether it was killed."""
    code = start_build(spec, root, kill_at, 1).wait()
    assert code in (0, -signal.SIGKILL)
    return build_corpus(spec, root, workers=1), code != 0


def test_killed_builds_go_on_to_the_same_bytes(text_spec, tmp_path, small_tasks, digests):
    expected = digests(build_corpus(text_spec, tmp_path / "expected", workers=1).path)
    for kill_at in (9, 40):  # early and late; the slow test has every point
        corpus, killed = killed_and_finished(text_spec, tmp_path / str(kill_at), kill_at)
        assert killed
        assert digests(corpus.path) == expected


@pytest.mark.slow
def test_killed_at_every_point(text_spec, tmp_path, small_tasks, digests):
    expected = digests(build_corpus(text_spec, tmp_path / "expected", workers=1).path)
    kill_at, killed = 1, True
    while killed:
        corpus, killed = killed_and_finished(text_spec, tmp_path / str(kill_at), kill_at)
        assert digests(corpus.path) == expected
        kill_at += 1
    assert kill_at > 40


@pytest.mark.slow
def test_killed_with_workers_at_any_time_and_no_worker_stays(text_spec, tmp_path, small_tasks, digests):
    expected = digests(build_corpus(text_spec, tmp_path / "expected", workers=1).path)
    rng = random.Random(0)
    for attempt in range(8):
        root = tmp_path / str(attempt)
        process = start_build(text_spec, root, 0, 2)
        time.sleep(rng.uniform(0.8, 3.0))
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        workers = [Path("/proc", pid, "cmdline") for pid in children.read_text().split()]
        process.kill()
        process.wait()
        end = time.monotonic() + 30
        # The command line of a process that ended, even if its exit code was not read, is empty.
        while [w for w in workers if w.exists() and w.read_bytes()]:
            assert time.monotonic() < end, "a worker outlives the build"
            time.sleep(0.05)
        assert digests(build_corpus(text_spec, root, workers=1).path) == expected


@pytest.mark.slow
def test_the_offline_domains_need_no_package(tmp_path):
    offline = [name for name, domain in DEMO_DOMAINS.items() if domain.offline]
    spec = CorpusSpec(domains={name: DomainSpec(source=f"demo:{name}") for name in offline})
    corpus = build_corpus(spec, tmp_path)
    for name in offline:
        entry = corpus.manifest.domains[name]
        assert entry.train_tokens > 500_000 and entry.validation_tokens > 20_000
        assert entry.licence == DEMO_DOMAINS[name].licence
        assert not entry.problems


def test_problems_are_in_the_manifest_and_good_documents_in_the_corpus(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "one"}\n' + "broken\n" * 150 + '{"text": "two"}\n')
    spec = CorpusSpec(domains={"a": DomainSpec(source=str(file))}, tokenizer=TokenizerSpec(vocab_size=257))
    entry = build_corpus(spec, tmp_path / "root").manifest.domains["a"]
    assert (entry.train_documents, entry.validation_documents, entry.problem_count) == (1, 1, 150)
    (line,) = entry.problems
    assert line.startswith(f"{file}:2: not JSON") and line.endswith(f"(150 like this, the next at {file}:3)")


def test_a_domain_without_text_lists_the_first_problems_and_leaves_nothing(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text("broken\n" * 9)
    with pytest.raises(UsageError, match=rf"domain 'a': .* has no usable text\n  {file}:1: not JSON") as error:
        build_corpus(CorpusSpec(domains={"a": DomainSpec(source=str(file))}), tmp_path / "root")
    assert str(error.value).endswith(f"(9 like this, the next at {file}:2)")
    assert not list((tmp_path / "root").glob("build-*"))


def test_a_given_tokenizer_is_taken_as_it_is(text_spec, tmp_path):
    own = build_corpus(text_spec, tmp_path / "root")
    file = tmp_path / "tokenizer.json"
    shutil.copy(own.tokenizer_file, file)
    given = text_spec.model_copy(update={"tokenizer": TokenizerSpec(file=str(file))})
    assert build_corpus(given, tmp_path / "root").hash == own.hash


def test_a_changed_corpus_is_not_taken_for_built(text_spec, tmp_path):
    corpus = build_corpus(text_spec, tmp_path / "root")
    (corpus.path / "train" / "en.bin").write_bytes(b"")
    with pytest.raises(ArmillaryError, match="delete the folder and build the corpus again"):
        build_corpus(text_spec, tmp_path / "root")


def test_a_licence_is_kept_shown_and_changes_nothing_else(text_spec, tmp_path, digests):
    def with_licence(licence):
        domains = {n: d.model_copy(update={"licence": licence}) for n, d in text_spec.domains.items()}
        return build_corpus(
            text_spec.model_copy(update={"domains": domains}),
            tmp_path / "root",
            progress=lambda *call: stages.append(call),
        )

    stages = []
    first = build_corpus(text_spec, tmp_path / "root")
    shards = digests(first.path / "train")
    for licence in ("CC BY 4.0", "my own", None):
        corpus = with_licence(licence)
        assert corpus.hash == first.hash and not stages
        assert {d.licence for d in corpus.manifest.domains.values()} == {licence}
        assert Corpus.open(corpus.path).manifest == corpus.manifest
    assert digests(first.path / "train") == shards


def as_format_1(corpus, spec):
    """Make a corpus look as format 1 left it: manifest without seal and without what came later, and old index."""
    newer = {"whole_documents", "near_duplicates", "near_duplicates_moved", "near_duplicates_in"}
    manifest = corpus.manifest.model_copy(update={"format": 1})
    old = json.loads(manifest.model_dump_json(exclude={"domains": dict.fromkeys(manifest.domains, newer)}))
    old["hash"] = manifest.content_hash()
    root = corpus.path.parent
    path = corpus.path.rename(root / old["hash"])
    (path / "manifest.json").write_text(json.dumps(old))
    shutil.rmtree(root / "index")
    (root / "index").mkdir()
    fingerprint = build._fingerprint_of_format_1(spec, {n: d.source for n, d in spec.domains.items()}, None)
    (root / "index" / f"{fingerprint}.json").write_text(json.dumps({"hash": path.name}))
    return path


def test_a_corpus_of_format_1_is_used_as_it_is(text_spec, tmp_path, monkeypatch, digests):
    path = as_format_1(build_corpus(text_spec, tmp_path / "root"), text_spec)
    before = digests(path)
    monkeypatch.chdir(tmp_path)
    relative = text_spec.model_copy(
        update={
            "domains": {
                n: d.model_copy(update={"source": os.path.relpath(d.source)}) for n, d in text_spec.domains.items()
            }
        }
    )
    for spec in (text_spec, relative):
        corpus = build_corpus(spec, tmp_path / "root")
        assert (corpus.path, corpus.manifest.format) == (path, 1)
    assert digests(path) == before
    changed = build_corpus(text_spec.model_copy(update={"validation_share": 0.2}), tmp_path / "root")
    assert changed.manifest.format == 2 and digests(path) == before


@pytest.mark.parametrize("file", ["HASH/manifest.json", "HASH/train/en.bin", "index/FINGERPRINT.json"])
def test_a_damaged_corpus_of_format_1_is_not_silently_replaced_by_another(text_spec, tmp_path, file):
    path = as_format_1(build_corpus(text_spec, tmp_path / "root"), text_spec)
    index = next(p for p in (path.parent / "index").glob("*.json") if not p.name.endswith(".verified.json"))
    damaged = index if "FINGER" in file else path.parent / file.replace("HASH", path.name)
    text = damaged.read_bytes()
    damaged.write_bytes(bytes([text[0] ^ 1]) + text[1:])
    with pytest.raises(DamagedFileError, match=damaged.name):
        build_corpus(text_spec, path.parent)


def test_a_file_that_could_not_be_read_is_tried_again(tmp_path, monkeypatch):
    folder = tmp_path / "text"
    folder.mkdir()
    for i in range(8):
        (folder / f"{i}.txt").write_text(f"text number {i} is about {i * 37} things")
    spec = CorpusSpec(domains={"a": DomainSpec(source=str(folder))}, tokenizer=TokenizerSpec(vocab_size=257))
    locked, real_open = str(folder / "3.txt"), open

    def refusing(path, *arguments, **options):
        if str(path) == locked:
            raise PermissionError(errno.EACCES, "Permission denied", locked)
        return real_open(path, *arguments, **options)

    with monkeypatch.context() as patch:
        for module in (build, sources):
            patch.setattr(module, "open", refusing, raising=False)
        without = build_corpus(spec, tmp_path / "root", workers=1)
        (problem,) = [p for p in without.manifest.domains["a"].problems if "cannot be read" in p]
        assert problem == f"{locked}:1: cannot be read (Permission denied)"
        assert build_corpus(spec, tmp_path / "root", workers=1).hash == without.hash
    whole = build_corpus(spec, tmp_path / "root", workers=1)
    assert whole.manifest.domains["a"].documents == without.manifest.domains["a"].documents + 1
    assert not whole.manifest.domains["a"].problem_count


@pytest.mark.parametrize(
    "pattern", ["read/*.json", "read/*.parquet", "read/*.npz", "split-*/tokenizer.json", "split-*/encode/*.npz"]
)
@pytest.mark.parametrize("harm", ["flip", "truncate", "empty"])
def test_damaged_parts_of_an_unfinished_build_are_made_again(
    text_spec, tmp_path, small_tasks, digests, monkeypatch, pattern, harm
):
    expected = digests(build_corpus(text_spec, tmp_path / "expected", workers=1).path)

    def stop(*_):
        raise ArmillaryError("stopped")

    with monkeypatch.context() as patch:
        patch.setattr(build, "_assemble", stop)
        with pytest.raises(ArmillaryError, match="stopped"):
            build_corpus(text_spec, tmp_path / "root", workers=1)
    (folder,) = (tmp_path / "root").glob("build-*")
    for file in folder.glob(pattern):
        data = file.read_bytes()
        middle = len(data) // 2
        changed = {"flip": data[:middle] + bytes([data[middle] ^ 4]) + data[middle + 1 :], "truncate": data[:-9]}
        file.write_bytes(changed.get(harm, b""))
    assert digests(build_corpus(text_spec, tmp_path / "root", workers=1).path) == expected


def test_a_damaged_corpus_of_the_same_content_is_replaced_by_a_new_build(text_spec, tmp_path):
    corpus = build_corpus(text_spec, tmp_path / "root")
    shutil.rmtree(tmp_path / "root" / "index")
    (corpus.path / "train/en.bin").write_bytes(b"torn")
    assert build_corpus(text_spec, tmp_path / "root").hash == corpus.hash


def test_long_documents_and_their_versions_are_on_one_side(tmp_path):
    rng = random.Random(0)
    words = [f"w{i}" for i in range(500)]
    books = [[rng.choice(words) for _ in range(900)] for _ in range(40)]
    for i, book in enumerate(books):
        (tmp_path / "text" / f"{i:02d}").mkdir(parents=True)
        for edition in range(2):
            edited = [rng.choice(words) if rng.random() < 0.02 * edition else word for word in book]
            (tmp_path / "text" / f"{i:02d}" / f"{edition}.txt").write_text(
                f"book{i:02d} " + f" book{i:02d} ".join(edited)
            )
    spec = CorpusSpec(
        domains={"a": DomainSpec(source=str(tmp_path / "text"))},
        tokenizer=TokenizerSpec(vocab_size=300),
        validation_share=0.2,
        max_document_chars=400,
    )
    corpus = build_corpus(spec, tmp_path / "root")
    names = {f"book{i:02d}" for i in range(40)}
    trained, held_out = (
        {word for text in documents_of(corpus, "a", split) for word in text.split()} & names
        for split in ("train", "validation")
    )
    assert len(held_out) > 1 and trained | held_out == names and not trained & held_out
    entry = corpus.manifest.domains["a"]
    assert (entry.whole_documents, entry.near_duplicates) == (80, 80)
    assert entry.near_duplicates_moved > 0 and entry.cut == 80


def test_the_order_of_the_domains_is_part_of_the_corpus(text_spec, tmp_path):
    names = list(text_spec.domains)
    turned = text_spec.model_copy(update={"domains": {n: text_spec.domains[n] for n in names[::-1]}})
    for spec in (text_spec, turned, text_spec):
        assert list(build_corpus(spec, tmp_path / "root").domains) == list(spec.domains)
