"""The store keeps what was reported: results are immutable, predictions and verdicts append only."""

import math
import threading

import pytest
import sqlalchemy as sa

from armillary.recipe import ArmillaryError, UsageError
from armillary.study import Store
from armillary.train import read_result, train_run


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
    store.mark_done(changed)
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


def test_a_newer_store_is_refused_and_not_touched(store):
    with store.engine.begin() as db:
        db.execute(sa.text("UPDATE format SET version = 99"))
        db.execute(sa.text("DROP TABLE stages"))  # as if the newer one had no such table
    with pytest.raises(ArmillaryError, match="store format 99; this version reads 1"):
        Store(store.folder)
    assert "stages" not in sa.inspect(store.engine).get_table_names()


def test_a_store_from_before_rates_gains_them_and_stays_readable_to_the_older_version(store, make_spec):
    store.add("a", [make_spec()])
    with store.engine.begin() as db:
        db.execute(sa.text("DROP TABLE rates"))
    again = Store(store.folder)
    assert again.rates() == [] and again.study_runs("a") == [make_spec().id]
    with again.engine.connect() as db:
        assert db.execute(sa.text("SELECT version FROM format")).scalars().all() == [1]


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


def test_a_file_that_is_no_database_is_told(tmp_path):
    (tmp_path / "store.sqlite").write_text("a poem about the moon, which is no database " * 100)
    with pytest.raises(ArmillaryError, match=r"store.sqlite: the store's database cannot be used: .* not a database"):
        Store(tmp_path)


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
