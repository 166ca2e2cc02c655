"""The store keeps what was reported: results are immutable, predictions and verdicts append only."""

import pytest
import sqlalchemy as sa

from armillary.recipe import ArmillaryError
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


def test_a_newer_store_is_refused(store):
    with store.engine.begin() as db:
        db.execute(sa.text("UPDATE format SET version = 99"))
    with pytest.raises(ArmillaryError, match="99"):
        Store(store.folder)
