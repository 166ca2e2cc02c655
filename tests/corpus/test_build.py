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

from armillary.corpus import DEMO_DOMAINS, Corpus, build_corpus, tasks
from armillary.recipe import ArmillaryError, CorpusSpec, DomainSpec, TokenizerSpec, UsageError


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


def test_progress_goes_through_the_stages_to_the_end(text_spec, tmp_path, small_tasks):
    calls = []
    build_corpus(text_spec, tmp_path / "root", workers=1, progress=lambda *call: calls.append(call))
    assert list(dict.fromkeys(stage for stage, _, _ in calls)) == ["read", "tokenizer", "encode", "assemble"]
    for stage in ("read", "encode", "assemble"):
        done = [call[1] for call in calls if call[0] == stage]
        total = {call[2] for call in calls if call[0] == stage}
        assert done == sorted(done) and len(done) > 2
        assert done[0] == 0 and {done[-1]} == total


def test_worker_processes_give_the_same_bytes(text_spec, tmp_path, small_tasks, digests):
    alone = build_corpus(text_spec, tmp_path / "one", workers=1)
    assert digests(build_corpus(text_spec, tmp_path / "two", workers=2).path) == digests(alone.path)


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
    for kill_at in (2, 9, 24, 40):
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
        time.sleep(0.5)
        # The command line of a process that ended, even if no one asked for its exit code, is empty.
        assert not [w for w in workers if w.exists() and w.read_bytes()]
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
    assert len(entry.problems) == 100
    assert entry.problems[0].startswith(f"{file}:2: not JSON")


def test_a_domain_without_text_lists_the_first_problems_and_leaves_nothing(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text("broken\n" * 9)
    with pytest.raises(UsageError, match=rf"domain 'a': .* holds no usable text\n  {file}:1: not JSON") as error:
        build_corpus(CorpusSpec(domains={"a": DomainSpec(source=str(file))}), tmp_path / "root")
    assert str(error.value).count("\n") == 5
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
