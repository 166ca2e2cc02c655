"""What is wrong with a large run is told before anything starts; ranks started here end as the run does."""

from __future__ import annotations

import ast
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

import armillary
from armillary.cli import main
from armillary.goodput import first_start_s, read_events
from armillary.launch import launch
from armillary.recipe import Checkpoints, LargeRun, Recipe, UsageError, load_training
from armillary.study.rates import _trained

_PATIENCE_S = 240


@pytest.fixture
def document(make_spec, tiny_corpus):
    """A large run as it stands in a file."""
    run = make_spec(batch_sequences=8).model_dump(mode="json")
    del run["corpus"]
    return {"name": "large", "corpus": str(tiny_corpus.path), "run": run, "layout": {"dp_shard": 2}}


@pytest.fixture
def write(tmp_path):
    """Write a document; returns its path."""

    def act(document, name="run.yaml"):
        path = tmp_path / name
        path.write_text(yaml.safe_dump(document, sort_keys=False))
        return path

    return act


def refuse(document, write, tmp_path, nproc=None):
    """What ``launch`` says to a document; nothing is left behind."""
    with pytest.raises(UsageError) as caught:
        launch(load_training(write(document)), tmp_path / "out", nproc=nproc, reporter=lambda: None)
    assert not (tmp_path / "out").exists()
    return str(caught.value)


def test_a_file_is_told_by_its_keys(document, write):
    assert isinstance(load_training(write(document)), LargeRun)
    recipe = Path(armillary.__file__).parent / "path" / "demo-offline.yaml"
    assert isinstance(load_training(recipe), Recipe)


def test_relative_paths_are_taken_from_the_folder_of_the_file(document, write, tmp_path, monkeypatch):
    """As target.yaml has them, from whatever directory the command is given, also through a link to the file."""
    monkeypatch.chdir(tmp_path / "..")
    (tmp_path / "work").mkdir()
    file = write({**document, "corpus": "../corpus/x", "folder": "store/runs/1"}, "work/target.yaml")
    link = tmp_path / "linked.yaml"
    link.symlink_to(file)
    for path in (file, link, file.relative_to(tmp_path.parent)):
        large = load_training(path)
        assert (large.corpus, large.folder) == (str(tmp_path / "corpus/x"), str(tmp_path / "work/store/runs/1"))
    absolute = load_training(write({**document, "folder": "~/runs"}))
    assert absolute.corpus == document["corpus"] and absolute.folder == str(Path("~/runs").expanduser())


def test_a_wrong_key_or_value_is_told_with_its_line(document, write, tmp_path):
    document["run"]["optimizer"]["wieght_decay"] = 0.1
    document["checkpoints"] = {"keep_last": 0}
    said = refuse(document, write, tmp_path)
    lines = (tmp_path / "run.yaml").read_text().splitlines()
    at = next(i for i, line in enumerate(lines, 1) if "wieght" in line)
    assert f"run.yaml:{at}: unknown key 'run.optimizer.wieght_decay'; nearest valid: 'weight_decay'" in said
    assert f"run.yaml:{len(lines)}: checkpoints.keep_last: " in said


def test_what_does_not_fit_is_refused(document, write, tmp_path, tiny_corpus):
    assert "the layout has 2 ranks (dp_shard 2), but 3 were requested" in refuse(document, write, tmp_path, 3)
    assert "run.yaml:" in (said := refuse({**document, "layout": {"dp_shard": 3}}, write, tmp_path))
    assert "batch_sequences (8) must be a multiple of" in said
    elsewhere = refuse({**document, "corpus": str(tiny_corpus.path.parent)}, write, tmp_path)
    assert f"'{tiny_corpus.path.name}' within it is one" in elsewhere
    assert "is not the folder of a built corpus" in refuse({**document, "corpus": "nowhere"}, write, tmp_path)
    other = {**document, "run": {**document["run"], "corpus": "0123456789abcdef"}}
    assert f"is corpus {tiny_corpus.hash}" in refuse(other, write, tmp_path)
    small = {**document["run"], "model": {**document["run"]["model"], "vocab_size": 100}}
    assert "(100) is below the corpus's 300" in refuse({**document, "run": small}, write, tmp_path)
    without = {key: value for key, value in document.items() if key != "layout"}
    assert "batch_sequences (8) must be a multiple of" in refuse(without, write, tmp_path, 3)


@pytest.fixture
def rehearsed(document, write, monkeypatch):
    """What ``--dry-run`` of a changed document leaves to be rehearsed, and its exit code."""
    asked = []

    def stand_in(spec, layout, *_):
        asked.append((spec, layout))
        raise UsageError("rehearsed")

    monkeypatch.setattr("armillary.parallel.dry_run", stand_in)

    def act(*options, **changes):
        asked.clear()
        file = write({**document, **changes})
        monkeypatch.setattr(sys, "argv", ["armillary", "train", str(file), "--dry-run", *options])
        with pytest.raises(SystemExit) as end:
            main()
        assert end.value.code == 2  # that of the stand-in too
        return bool(asked)

    return act


def test_a_dry_run_holds_the_run_against_its_corpus_where_that_is(document, rehearsed, capsys, tiny_corpus, tmp_path):
    """What would end the real run before its first step ends the dry run too."""
    assert rehearsed()
    assert "not on this machine" not in capsys.readouterr().err
    small = {**document["run"], "model": {**document["run"]["model"], "vocab_size": 100}}
    assert not rehearsed(run=small)
    assert "(100) is below the corpus's 300" in capsys.readouterr().err.replace("\n", " ")
    assert not rehearsed(run={**document["run"], "mixture": [{"start_step": 0, "weights": {"moon": 1.0}}]})
    assert "moon" in capsys.readouterr().err
    longer = [{"start_step": 6, "context_length": 65536, "batch_sequences": 8}]
    assert not rehearsed(run={**document["run"], "lengths": longer})
    assert "65537" in capsys.readouterr().err
    assert not rehearsed(corpus=str(tiny_corpus.path.parent))
    assert "is not the folder of a built corpus" in capsys.readouterr().err.replace("\n", " ")
    assert rehearsed(corpus="elsewhere")
    assert f"{tmp_path / 'elsewhere'} is not on this machine" in capsys.readouterr().err.replace("\n", " ")


def test_under_a_launcher_nproc_is_refused(document, write, tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "a launcher has started 2 already" in refuse(document, write, tmp_path, 2)


def test_the_rule_of_checkpoints():
    rule = Checkpoints(every_steps=4, keep_every_steps=6)
    assert [step for step in range(1, 13) if rule.due(step)] == [4, 6, 8, 12]
    assert [step for step in range(1, 13) if rule.stays(step)] == [6, 12]


def test_no_vendor_is_named():
    """Nothing outside ``plan/`` names an accelerator, but for one optional import and what Ray calls them."""
    found = []
    root = Path(armillary.__file__).parent
    for path in root.rglob("*.py"):
        if path.relative_to(root).parts[0] == "plan" or path.name == "ray.py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            words = [getattr(node, name, None) for name in ("id", "attr", "name", "value", "module")]
            for word in words:
                if isinstance(word, str) and len(word) < 40 and any(v in word.lower() for v in ("cuda", "npu", "nccl")):
                    found.append((path.name, word))
    assert {word for _, word in found if "input" not in word.lower()} == {"torch_npu"}


def run(arguments, **options):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(arguments, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)


def wait_for(path):
    end = time.monotonic() + _PATIENCE_S
    while not path.exists():
        assert time.monotonic() < end
        time.sleep(0.02)


def ranks_of(pid):
    """The processes that a launcher has started as ranks: the children of its fork server."""
    server = next(c for c in children(pid) if b"forkserver" in Path(f"/proc/{c}/cmdline").read_bytes())
    return children(server)


def children(pid):
    """The processes that a process has started."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


class Quiet:
    """A reporter that shows nothing."""

    def __call__(self, stage, done, total, note):
        """Nothing."""

    def say(self, text):
        """Nothing."""

    def close(self):
        """Nothing."""


@pytest.mark.slow
def test_the_events_of_ranks_say_when_the_run_began_and_count_each_step_once(document, write, tmp_path):
    """What a store takes over from a run that a launcher has carried out: one process writes for all ranks."""
    before, folder = time.time(), tmp_path / "out"
    launch(load_training(write(document)), folder, nproc=2, reporter=Quiet)
    began = first_start_s(folder)
    assert began is not None and before <= began <= time.time()
    assert _trained(folder / "events.jsonl", before)[0] == document["run"]["steps"]


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGSTOP])
def test_ranks_of_torchrun_resume_after_one_is_killed_or_stopped(sent, document, write, tmp_path):
    """torchrun sees only processes that end, so rank 0 ends itself if it waits for a stopped one."""
    document["run"] |= {"steps": 1000, "validation": {"every": 100000, "windows": 4}}
    document["checkpoints"] = {"every_steps": 20}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    folder = tmp_path / "out"
    command = ["--max-restarts", "2", "-m", "armillary", "train", str(write(document)), "--out", str(folder)]
    launched = run([*torchrun, *command])
    wait_for(folder / "checkpoints" / "step-20")
    rank = next(c for c in children(launched.pid) if b"\0RANK=1\0" in Path(f"/proc/{c}/environ").read_bytes())
    os.kill(rank, sent)
    _, said = launched.communicate(timeout=_PATIENCE_S)
    assert launched.returncode == 0, said.decode()
    events = list(read_events(folder / "events.jsonl"))
    assert [e.kind for e in events].count("resume") == 1  # not once per attempt to connect
    found = [e.data for e in events if e.kind == "detected"]
    assert len(found) == (sent == signal.SIGSTOP)
    assert all(one["found"] == "hung" and one["silent_s"] < 30 for one in found)
    assert (b"so that the launcher restarts all ranks" in said) == (sent == signal.SIGSTOP)


@pytest.mark.slow
def test_killed_stopped_and_taken_to_its_end_by_torchrun(document, write, tmp_path):
    """A rank is killed: all start again from the last checkpoint. Ctrl-C: a checkpoint. torchrun: the rest."""
    document["run"] |= {"steps": 3000, "validation": {"every": 100000, "windows": 4}}
    document["checkpoints"] = {"every_steps": 20}
    file, folder = write(document), tmp_path / "out"
    command = [sys.executable, "-m", "armillary", "train", str(file), "--out", str(folder), "--json"]
    launched = run([*command, "--nproc", "2"])
    wait_for(folder / "checkpoints" / "step-20")
    os.kill(ranks_of(launched.pid)[-1], signal.SIGKILL)
    events = folder / "events.jsonl"
    end = time.monotonic() + _PATIENCE_S
    while not any(e.kind == "resume" for e in read_events(events)):
        assert time.monotonic() < end and launched.poll() is None
        time.sleep(0.1)
    launched.send_signal(signal.SIGINT)
    _, said = launched.communicate(timeout=_PATIENCE_S)
    assert launched.returncode == 1 and b"start it again to resume" in said
    stopped = [e.step for e in read_events(events) if e.kind == "stop"]
    assert len(stopped) == 1 and (folder / "checkpoints" / f"step-{stopped[0]}").is_dir()
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    finished = run([*torchrun, *command[2:]])
    printed, said = finished.communicate(timeout=_PATIENCE_S)
    assert finished.returncode == 0, said.decode()
    assert json.loads(printed)["tokens"] == 3000 * 8 * 16  # one JSON value: rank 0 alone prints
    assert [e.step for e in read_events(events) if e.kind == "resume"][-1] == stopped[0]
    assert _trained(events, 0.0)[0] == 3000  # those that were taken again after the kill count once
    assert first_start_s(folder) == next(e.time_s for e in read_events(events) if e.kind == "start")
