"""The store keeps what was reported: results are immutable, predictions and verdicts append only."""

import fcntl
import json
import math
import shutil
import subprocess
import sys
import threading
from dataclasses import asdict, replace

import pytest
import sqlalchemy as sa

from armillary.launch import Failure
from armillary.launch.workers.executor import keep_result, settled
from armillary.recipe import ArmillaryError, ForeignFileError, UsageError, read_result
from armillary.store import Reader, Store, to_json
from armillary.store.runs import difference
from armillary.train import train_run


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


def test_the_same_specification_is_one_run(store, make_spec):
    store.add("a", [make_spec(), make_spec()])
    store.add("b", [make_spec()])
    assert store.study_runs("a") == store.study_runs("b") == [make_spec().id]
    assert store.run_spec(make_spec().id) == make_spec()


def test_a_result_is_found_in_the_folder_and_never_replaced(store, make_spec, tiny_corpus):
    spec = make_spec()
    store.add("a", [spec])
    train_run(spec, tiny_corpus, store.run_folder(spec.id))
    result = read_result(store.run_folder(spec.id))
    assert store.result(spec.id) == result  # killed between folder and database: the folder is enough
    changed = type(result)(**{**result.__dict__, "train_loss": 0.0})
    assert store.mark_done(changed) is None  # that it is done is known: this is another process's late word
    store.mark_failed(spec.id, "failed", "no")
    assert Store(store.folder).result(spec.id) == result
    assert [row["status"] for row in store.overview()] == ["done"]


def test_predictions_are_made_before_and_stay(store, make_spec):
    spec = make_spec()
    store.record_prediction(spec.id, {"target": 1.0})
    store.record_prediction(spec.id, {"target": 1.0})
    with pytest.raises(ArmillaryError, match="never rewritten"):
        store.record_prediction(spec.id, {"target": 2.0})
    store.record_verdict(spec.id, {"inside": 1})
    store.record_verdict(spec.id, {"inside": 2})
    assert store.verdict(spec.id)["inside"] == 1
    for statement in (
        "UPDATE predictions SET content = '{}'",
        "DELETE FROM predictions",
        "INSERT OR REPLACE INTO predictions SELECT * FROM predictions",
        "UPDATE verdicts SET content = '{}'",
        "DELETE FROM verdicts",
    ):
        with pytest.raises(sa.exc.SQLAlchemyError), store.engine.begin() as db:
            db.execute(sa.text(statement))
    assert store.prediction(spec.id)["target"] == 1.0


def test_a_prediction_of_a_run_that_began_is_none(store, make_spec):
    spec = make_spec()
    store.add("a", [spec])
    store.mark_running(spec.id)
    with pytest.raises(ArmillaryError, match="already begun"):
        store.record_prediction(spec.id, {"target": 1.0})


def test_a_forged_prediction_is_told(store, make_spec):
    spec = make_spec()
    store.record_prediction(spec.id, {"target": 1.0})
    with store.engine.begin() as db:
        for name in db.execute(sa.text("SELECT name FROM sqlite_master WHERE type = 'trigger'")).scalars().all():
            db.execute(sa.text(f"DROP TRIGGER {name}"))
        db.execute(sa.text("UPDATE predictions SET content = '{\"target\": 9.0}'"))
    with pytest.raises(ArmillaryError, match="was changed after it was recorded"):
        store.prediction(spec.id)


def test_a_store_from_before_rates_gains_them_and_stays_readable_to_the_older_version(store, make_spec):
    store.add("a", [make_spec()])
    with store.engine.begin() as db:
        db.execute(sa.text("DROP TABLE rates"))
    again = Store(store.folder)
    assert again.rates() == [] and again.study_runs("a") == [make_spec().id]
    with again.engine.connect() as db:
        assert db.execute(sa.text("SELECT version FROM format")).scalars().all() == [4]


def test_a_rate_replaces_the_one_before_and_no_other(store):
    key = {"machine": "m", "shape": "s", "context_length": 16, "batch_sequences": 4, "precision": "fp32"}
    about = {"machine": {"device": "浑仪"}}
    for how, rate in (("probe", 10.0), ("runs", 8.0), ("runs", 9.0)):
        store.record_rate(key | {"how": how}, tokens_per_s=rate, seconds=1.0, recorded_at=2.0, about=about)
    store.record_rate(
        key | {"how": "runs", "machine": "n"}, tokens_per_s=1.0, seconds=1.0, recorded_at=1.0, about=about
    )
    assert {row["how"]: row["tokens_per_s"] for row in Store(store.folder).rates(**key)} == {"probe": 10.0, "runs": 9.0}
    assert len(store.rates()) == 3 and store.rates(machine="n")[0]["about"] == about


@pytest.mark.parametrize("url", ["nonsense", "nosuchdatabase://host/name", "postgresql+nosuchdriver://host/name"])
def test_a_url_that_names_no_database_is_wrong_use(url, tmp_path):
    with pytest.raises(UsageError, match="give an SQLAlchemy URL such as postgresql"):
        Store(tmp_path, url)


def test_studies_that_begin_at_the_same_moment_meet_in_one_store(make_spec, tmp_path):
    specs = [make_spec(seed=seed) for seed in range(5)]
    barrier, errors = threading.Barrier(4), []

    def begin(number):
        barrier.wait()
        try:
            mine = Store(tmp_path / "store")
            mine.add(f"study {number}", specs)
            mine.record_stage("stage", "key", {"from": number})
            mine.record_prediction("0123456789abcdef", {"target": 1.0})
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=begin, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    store = Store(tmp_path / "store")
    assert len({row["run"] for row in store.overview()}) == 5 and len(store.overview()) == 20
    assert store.stage("stage", "key")["from"] in range(4)
    with store.engine.connect() as db:
        assert db.execute(sa.text("SELECT count(*) FROM predictions")).scalar() == 1


def test_numbers_come_back_as_they_were_recorded(store, make_spec):
    content = {"low": 0.1 + 0.2, "high": math.nextafter(4.0, 5.0), "domains": {"浑仪": 1e-300}}
    store.record_prediction("0123456789abcdef", content)
    known = Store(store.folder).prediction("0123456789abcdef")
    assert {key: known[key] for key in content} == content
    store.record_stage("mixture", "key", content)
    store.record_stage("mixture", "key", {"other": 1})
    assert store.stage("mixture", "key") == content and store.stage("mixture", "other") is None


def test_a_verdict_needs_a_prediction(store):
    with pytest.raises(ArmillaryError, match="no prediction, so there is nothing to judge"):
        store.record_verdict("0123456789abcdef", {"inside": 1})
    assert store.verdict("0123456789abcdef") is None


def test_the_first_attempt_is_when_a_run_started(store, make_spec):
    spec = make_spec()
    store.add("a", [spec])
    assert store.started_at(spec.id) is None
    store.mark_running(spec.id)
    first = store.started_at(spec.id)
    store.mark_failed(spec.id, "pending", "its worker died")
    store.mark_running(spec.id)
    assert store.started_at(spec.id) == first
    (row,) = store.overview()
    assert (row["status"], row["attempts"]) == ("running", 2)


def test_a_run_that_left_a_folder_before_it_was_predicted_has_begun(store, make_spec, tiny_corpus):
    """Also where the database knows nothing of it, as after a copy from another machine."""
    spec = make_spec(seed=77)
    train_run(spec, tiny_corpus, store.run_folder(spec.id))
    with pytest.raises(ArmillaryError, match="already begun"):
        store.record_prediction(spec.id, {"target": 1.0})


def trained(store, spec, corpus):
    store.add("a", [spec])
    store.mark_running(spec.id)
    store.mark_done(train_run(spec, corpus, store.run_folder(spec.id)))
    return store.result(spec.id)


FILES = ["", "result.json", "model.safetensors", "metrics.parquet", "events.jsonl", "spec.json"]


@pytest.mark.parametrize("lost", FILES, ids=lambda name: name or "folder")
def test_a_done_run_whose_files_are_gone_is_trained_again_and_compared(lost, store, make_spec, tiny_corpus, outcome):
    spec = make_spec()
    recorded = trained(store, spec, tiny_corpus)
    before = outcome(store.run_folder(spec.id))
    assert not store.missing_files(spec.id) and store.verify() == []
    path = store.run_folder(spec.id) / lost
    path.unlink() if lost else shutil.rmtree(path)
    assert store.missing_files(spec.id) and "is missing" in store.verify()[0]
    store.reopen(spec.id)
    assert settled(store, spec.id) is None and store.result(spec.id) == recorded  # which counts meanwhile
    store.mark_running(spec.id)
    again = train_run(spec, tiny_corpus, store.run_folder(spec.id))
    assert keep_result(store, again) == again and settled(store, spec.id) == recorded
    assert outcome(store.run_folder(spec.id)) == before
    assert store.verify() == [] and not store.missing_files(spec.id)
    assert store.chain().of("repeated", spec.id).about["same"] is True


def test_other_numbers_of_a_run_trained_again_are_said_and_not_taken(store, make_spec, tiny_corpus, caplog):
    spec = make_spec()
    recorded = trained(store, spec, tiny_corpus)
    shutil.rmtree(store.run_folder(spec.id))
    store.reopen(spec.id)
    other = replace(recorded, train_loss=0.5, wall_s=99.0)
    assert keep_result(store, other) == recorded and store.result(spec.id) == recorded
    assert f"run {spec.id}: train_loss is 0.5 in its folder" in caplog.text
    (row,) = store.overview()
    assert row["status"] == "done" and "train_loss is 0.5" in row["error"]
    assert store.chain().of("repeated", spec.id).about["same"] is False


def test_files_are_taken_from_the_other_folder_of_a_shared_database(make_spec, tiny_corpus, outcome, tmp_path):
    url, spec = f"sqlite:///{tmp_path / 'shared.sqlite'}", make_spec()
    first, second = Store(tmp_path / "first", url), Store(tmp_path / "second", url)
    recorded = trained(first, spec, tiny_corpus)
    assert second.result(spec.id) == recorded and second.missing_files(spec.id)
    assert not second.run_folder(spec.id).exists()
    second.reopen(spec.id)
    assert settled(second, spec.id) == recorded and not second.missing_files(spec.id)
    assert outcome(second.run_folder(spec.id)) == outcome(first.run_folder(spec.id))
    shutil.rmtree(second.run_folder(spec.id))
    (first.run_folder(spec.id) / "result.json").write_text("{}")
    second.reopen(spec.id)  # the other folder is damaged by now
    assert settled(second, spec.id) is None and not second.run_folder(spec.id).exists()


def test_a_result_that_differs_from_the_one_recorded_is_found(store, make_spec, tiny_corpus):
    spec = make_spec()
    recorded = trained(store, spec, tiny_corpus)
    with store.engine.begin() as db:
        changed = to_json({**asdict(recorded), "tokens": 1})
        db.execute(sa.text("UPDATE runs SET result = :result"), {"result": json.dumps(changed)})
    problems = store.verify()
    assert f"run {spec.id}: its result was changed after it was recorded" in problems
    assert any("tokens is 768 in its folder, but 1 was recorded" in problem for problem in problems)


def test_what_an_older_version_did_not_record_is_no_difference():
    assert difference("r", {"loss": 1.0}, {"loss": 1.0, "measured": {}, "skipped": []}) is None
    assert "skipped is [3] in its folder" in str(difference("r", {"loss": 1.0}, {"loss": 1.0, "skipped": [3]}))


def test_the_result_of_another_run_is_not_taken(store, make_spec, tiny_corpus):
    mine, other = make_spec(seed=1), make_spec(seed=2)
    store.add("a", [mine])
    train_run(other, tiny_corpus, store.run_folder(mine.id))
    with pytest.raises(ForeignFileError, match=r"result\.json"):
        store.result(mine.id)
    failure = settled(store, mine.id)
    assert isinstance(failure, Failure) and failure.passing and "result.json" in failure.error


def test_a_damaged_result_fails_its_run_alone(store, make_spec, tiny_corpus):
    spec = make_spec()
    store.add("a", [spec])
    train_run(spec, tiny_corpus, store.run_folder(spec.id))
    (store.run_folder(spec.id) / "result.json").write_text('{"format": 1, "run"')
    failure = settled(store, spec.id)
    assert failure.passing and "result.json" in failure.error
    assert store.overview()[0]["status"] == "failed"


def test_an_unknown_run_is_said_in_one_line(store):
    for act in (store.run_spec, store.reopen):
        with pytest.raises(ArmillaryError, match=r"run 0123456789abcdef is not in .*store\.sqlite"):
            act("0123456789abcdef")
    assert not store.missing_files("0123456789abcdef") and store.order("0123456789abcdef") is None


def test_a_specification_of_a_newer_version_is_said_in_one_line(store, make_spec):
    store.add("a", [make_spec()])
    with store.engine.begin() as db:
        db.execute(sa.text("UPDATE runs SET spec = '{\"format\": 9}'"))
        db.execute(sa.text("DELETE FROM run_facts"))  # an older version has added the run
    for act in (store.overview, lambda: store.run_spec(make_spec().id)):
        with pytest.raises(ArmillaryError, match=r"store\.sqlite: this version cannot read the specification of run"):
            act()
    assert any("specification" in problem for problem in store.verify())


BEGIN = """
import sys, time
from pathlib import Path
from armillary.recipe import RunSpec
from armillary.store import Store
store = Store(Path(sys.argv[1]))
store.mark_running(sys.argv[2])
print("begun", flush=True)
sys.stdin.read()
"""


def test_a_run_is_interrupted_when_nothing_trains_it_any_more(store, make_spec):
    """Neither the process that began it, which may still be waiting for a worker, nor a worker in its folder."""
    spec = make_spec()
    store.add("a", [spec])
    process = subprocess.Popen(
        [sys.executable, "-c", BEGIN, str(store.folder), spec.id],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "begun\n"

    def status():
        found = [row["status"] for row in Store(store.folder).overview()]
        (study,) = Reader(store.folder).studies()
        assert study.runs == {found[0]: 1}
        return found

    assert status() == ["running"]
    process.kill()
    process.communicate()
    assert status() == ["interrupted"]
    store.run_folder(spec.id).mkdir()
    with open(store.run_folder(spec.id) / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # a worker that is leaving, or one of a launcher
        assert status() == ["running"]
    assert status() == ["interrupted"]
    moved = store.folder.rename(store.folder.with_name("moved"))
    assert [row["status"] for row in Store(moved).overview()] == ["interrupted"]
    Store(moved).mark_running(spec.id)
    assert len(list((moved / ".owners").iterdir())) <= 1  # what dead processes left is gone


def test_a_run_that_is_done_is_not_begun_again(store, make_spec, tiny_corpus):
    recorded = trained(store, make_spec(), tiny_corpus)
    store.mark_running(make_spec().id)
    store.mark_failed(make_spec().id, "failed", "no")
    (row,) = store.overview()
    assert (row["status"], row["attempts"]) == ("done", 1) and store.result(make_spec().id) == recorded


def test_a_run_in_training_is_not_reopened(store, make_spec, tiny_corpus):
    trained(store, make_spec(), tiny_corpus)
    folder = store.run_folder(make_spec().id)
    (folder / "model.safetensors").unlink()
    with open(folder / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ArmillaryError, match="another process is training this run"):
            store.reopen(make_spec().id)
    assert (folder / "result.json").exists()
