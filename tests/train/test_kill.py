"""A run that is killed, however often and wherever, ends with the same numbers, bit for bit, as one that is not."""

import signal
import time

import pytest
from victim import POINTS, process, train_slowly, train_until, train_until_operation

from armillary.goodput import read_events
from armillary.recipe import Validation
from armillary.train import BusyRunError, train_run

_PATIENCE_S = 60


@pytest.fixture(scope="module")
def spec(make_spec):
    """Short, since every step is brought to the disk, with validations before and after the kills."""
    return make_spec(steps=8, validation=Validation(every=3, windows=4))


def check_clean(folder):
    """Nothing is left that a finished run does not have (what a kill left half-written is hidden by its name)."""
    names = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    files = {"spec.json", "events.jsonl", "metrics.parquet", "model.safetensors", "result.json"}
    assert names - {"checkpoints"} == files
    assert list(folder.glob("checkpoints/step-*")) == []


@pytest.mark.parametrize("point", POINTS)
def test_killed_at(point, spec, tiny_corpus, tmp_path, undisturbed, outcome):
    folder = tmp_path / "run"
    victim = process(train_until, point, spec, tiny_corpus.path, folder)
    victim.join(_PATIENCE_S)
    assert victim.exitcode == -signal.SIGKILL
    train_run(spec, tiny_corpus, folder)
    assert outcome(folder) == undisturbed(spec)
    if point != "after the result":
        check_clean(folder)


@pytest.mark.slow
def test_killed_again_and_again(spec, tiny_corpus, tmp_path, undisturbed, outcome):
    """The n-th attempt is killed before its n-th file operation, until one comes through."""
    folder = tmp_path / "run"
    for kills in range(200):
        victim = process(train_until_operation, kills + 1, spec, tiny_corpus.path, folder)
        victim.join(_PATIENCE_S)
        if victim.exitcode != -signal.SIGKILL:
            break
    assert victim.exitcode == 0 and kills >= 20
    assert outcome(folder) == undisturbed(spec)


@pytest.mark.slow
def test_killed_before_every_file_operation(spec, tiny_corpus, tmp_path, undisturbed, outcome):
    for kills in range(1000):
        folder = tmp_path / f"{kills}"
        victim = process(train_until_operation, kills + 1, spec, tiny_corpus.path, folder)
        victim.join(_PATIENCE_S)
        if victim.exitcode != -signal.SIGKILL:
            break
        train_run(spec, tiny_corpus, folder)
        assert outcome(folder) == undisturbed(spec), f"killed before file operation {kills + 1}"
    assert victim.exitcode == 0 and kills >= 100


def test_a_second_process_is_refused_until_the_first_is_dead(spec, tiny_corpus, tmp_path, undisturbed, outcome):
    folder = tmp_path / "run"
    first = process(train_slowly, spec, tiny_corpus.path, folder)
    end = time.monotonic() + _PATIENCE_S
    while not (folder / "checkpoints" / "step-5").exists():
        assert time.monotonic() < end
        time.sleep(0.01)
    with pytest.raises(BusyRunError, match="another process is training this run"):
        train_run(spec, tiny_corpus, folder)
    first.kill()
    first.join()
    train_run(spec, tiny_corpus, folder)
    assert outcome(folder) == undisturbed(spec)
    resumed = [event.step for event in read_events(folder / "events.jsonl") if event.kind == "resume"]
    assert resumed == [5]
