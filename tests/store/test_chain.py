"""The journal proves what was recorded, and in which order: whatever is changed by hand is found."""

import re
import sqlite3
import threading
import time
from contextlib import closing, suppress
from pathlib import Path

import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st

from armillary.goodput import EventWriter
from armillary.recipe import ArmillaryError, DamagedFileError, RunResult
from armillary.store import Store

OLD = Path(__file__).with_name("store-format-1.sql")
TARGET = "f2f43e9d3ffeeb86"  # of the old store: predicted, trained, judged


def old_store(folder):
    """A store as the version before the journal left it."""
    folder.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(folder / "store.sqlite")) as db:
        db.executescript(OLD.read_text(encoding="utf-8"))
    return folder


def result_of(spec, loss=3.0):
    return RunResult(spec.id, {"sky": loss}, {"sky": 1.0}, loss, spec.tokens, spec.flops, {"sky": 0.5}, 1.0)


def judged(folder, spec):
    """A store with a whole history: prediction, start, result, verdict."""
    store = Store(folder)
    store.record_prediction(spec.id, {"target": 1.0, "浑仪": [0.1 + 0.2, 1e-300]})
    store.add("target", [spec])
    store.mark_running(spec.id)
    store.mark_done(result_of(spec))
    store.record_verdict(spec.id, {"inside": 1})
    return store


def by_hand(store, *statements):
    """Change a database as its owner can, past its triggers."""
    store.flush()
    with closing(sqlite3.connect(store.folder / "store.sqlite", isolation_level=None)) as db:
        for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            db.execute(f"DROP TRIGGER {name}")
        for statement in statements:
            db.execute(statement)


def test_the_order_is_in_the_numbers(tmp_path, make_spec):
    spec = make_spec()
    store = judged(tmp_path, spec)
    chain = store.chain()
    assert [entry.kind for entry in chain.entries] == ["chain", "prediction", "start", "result", "verdict"]
    assert [entry.seq for entry in chain.entries] == [1, 2, 3, 4, 5]
    assert chain.intact and not chain.clock and chain.head == chain.entries[-1].sha256
    verdict = chain.of("verdict", spec.id)
    assert verdict.about["result"] == chain.of("result", spec.id).about["result"] and verdict.previous != verdict.sha256
    order = store.order(spec.id)
    assert (order.prediction, order.start, order.by, order.holds) == (2, 3, "store", True)
    assert store.verify() == [f"{store.run_folder(spec.id)}: is missing, although run {spec.id} is done"]


def test_a_verdict_on_a_second_question_holds_the_result_that_it_judges(tmp_path, make_spec):
    spec = make_spec()
    store = judged(tmp_path, spec)
    for question in ("other weights", "of an older version"):
        store.record_prediction(question, {"target": 2.0})
    store.record_verdict("other weights", {"run": spec.id, "inside": 1})
    store.record_verdict("of an older version", {"inside": 1})  # names no run, as the entries of older versions
    assert store.chain().intact and store.verdict("other weights")["inside"] == 1
    about = store.chain().of("verdict", "other weights").about
    assert about["of"] == spec.id and about["result"] == store.chain().of("result", spec.id).about["result"]
    by_hand(store, f"UPDATE runs SET result = json_set(result, '$.train_loss', 9.0) WHERE id = '{spec.id}'")
    with pytest.raises(ArmillaryError, match=f"the result of run {spec.id} is not the one that its verdict judges"):
        store.verdict("other weights")
    assert store.verdict("of an older version")["inside"] == 1


def test_a_clock_that_is_set_back_is_noticed_and_decides_nothing(tmp_path, make_spec, monkeypatch):
    spec, now = make_spec(), time.time()
    store = Store(tmp_path)
    store.record_prediction(spec.id, {"target": 1.0})
    monkeypatch.setattr(time, "time", lambda: now - 3600)
    store.add("a", [spec])
    store.mark_running(spec.id)
    chain, order = store.chain(), store.order(spec.id)
    assert order.started_at < order.predicted_at and order.holds and chain.intact
    assert (
        len(chain.clock) == 1
        and f"start of run {spec.id}" in chain.clock[0]
        and re.search(r" 36\d\d s behind", chain.clock[0])
    )
    with pytest.raises(ArmillaryError, match="never rewritten"):
        store.record_prediction(spec.id, {"target": 2.0})


CHANGES = {
    "a prediction's content": "UPDATE predictions SET content = '{\"target\": 9.0}'",
    "a prediction with its hash": "UPDATE predictions SET content = '{}', sha256 = '44136fa355b3678a'",
    "a prediction's time": "UPDATE predictions SET recorded_at = recorded_at - 1",
    "a prediction's row": "DELETE FROM predictions",
    "a verdict": "UPDATE verdicts SET content = '{\"inside\": 2}'",
    "a verdict's time": "UPDATE verdicts SET recorded_at = recorded_at + 1",
    "a verdict's row": "DELETE FROM verdicts",
    "a result": "UPDATE runs SET result = replace(result, '3.0', '1.0')",
    "a result away": "UPDATE runs SET result = NULL, status = 'pending'",
    "a start": "UPDATE runs SET started_at = started_at + 1e6",
    "a start away": "UPDATE runs SET started_at = NULL",
    "a run away": "DELETE FROM runs",
    "an entry": "UPDATE journal SET recorded_at = recorded_at - 1 WHERE seq = 3",
    "an entry's number": "UPDATE journal SET seq = 99 WHERE seq = 5",
    "an entry away": "DELETE FROM journal WHERE seq = 3",
    "the first entry away": "DELETE FROM journal WHERE seq = 1",
    "the last entry away": "DELETE FROM journal WHERE seq = 5",
    "an entry's hashes": "UPDATE journal SET about = '[]' WHERE seq = 4",
    "two entries": "UPDATE journal SET kind = CASE seq WHEN 3 THEN 'result' ELSE 'start' END WHERE seq IN (3, 4)",
    "all entries away": "DELETE FROM journal",
    "a prediction more": "INSERT INTO predictions VALUES ('0123456789abcdef', 1.0, '44136fa355b3678a', '{}')",
    "an entry more": "INSERT INTO journal SELECT seq + 1, kind, 'x', recorded_at, about, sha256, sha256 FROM journal "
    "WHERE seq = 5",
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_is_changed_by_hand_is_found(change, tmp_path, make_spec):
    store = judged(tmp_path, make_spec())
    store.close()
    by_hand(store, "PRAGMA foreign_keys=OFF", change)
    again = Store(tmp_path)  # opening repairs nothing
    assert not again.chain().intact
    assert set(again.chain().problems) <= set(again.verify())


@pytest.mark.parametrize("name", [name for name in CHANGES if name.startswith(("a prediction's", "a prediction with"))])
def test_a_changed_prediction_is_never_shown(name, tmp_path, make_spec):
    store = judged(tmp_path, make_spec())
    by_hand(store, "PRAGMA foreign_keys=OFF", CHANGES[name])
    for act in (store.prediction, lambda run: store.record_verdict(run, {})):
        with pytest.raises(ArmillaryError, match=r"prediction of run .* after it was recorded"):
            act(make_spec().id)


@pytest.mark.parametrize("name", ["a verdict", "a verdict's time", "a verdict's row", "a result", "a result away"])
def test_a_changed_verdict_or_one_on_another_result_is_never_shown(name, tmp_path, make_spec):
    store = judged(tmp_path, make_spec())
    by_hand(store, CHANGES[name])
    with pytest.raises(ArmillaryError, match=r"was (changed|removed)"):
        store.verdict(make_spec().id)


def test_a_start_that_is_taken_back_does_not_allow_a_prediction(tmp_path, make_spec):
    spec = make_spec()
    store = Store(tmp_path)
    store.add("a", [spec])
    store.mark_running(spec.id)
    by_hand(store, "UPDATE runs SET started_at = NULL, status = 'pending'")
    with pytest.raises(ArmillaryError, match="already begun"):
        store.record_prediction(spec.id, {"target": 1.0})


def test_the_database_itself_refuses_to_change_the_journal(tmp_path, make_spec):
    store = judged(tmp_path, make_spec())
    for statement in (
        "UPDATE journal SET kind = 'x'",
        "DELETE FROM journal",
        "INSERT OR REPLACE INTO journal SELECT * FROM journal",
    ):
        with pytest.raises(sa.exc.SQLAlchemyError, match="never rewritten"), store.engine.begin() as db:
            db.execute(sa.text(statement))
    assert store.chain().intact


def test_writers_at_once_leave_one_chain(tmp_path, make_spec):
    specs = [make_spec(seed=seed) for seed in range(12)]
    barrier, errors = threading.Barrier(4), []

    def write(number):
        barrier.wait()
        try:
            store = Store(tmp_path)
            for spec in specs[number::4]:
                store.record_prediction(spec.id, {"target": spec.seed})
                store.add("a", [spec])
                store.mark_running(spec.id)
                store.mark_done(result_of(spec))
                store.record_verdict(spec.id, {"inside": 1})
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    chain = Store(tmp_path).chain()
    assert errors == [] and chain.intact and len(chain.entries) == 1 + 4 * len(specs)
    assert all(Store(tmp_path).order(spec.id).holds for spec in specs)


class Killed(BaseException):
    """The process ends here."""


@settings(max_examples=40)
@given(number=st.integers(1, 60), kind=st.sampled_from([Killed, sqlite3.OperationalError]))
def test_a_failure_at_any_write_leaves_a_whole_store(number, kind, make_spec, tmp_path_factory):
    """And the same calls, given again, end as if nothing had happened."""
    folder, specs = tmp_path_factory.mktemp("store"), [make_spec(seed=seed) for seed in (1, 2)]
    seen = []

    def fail(connection, cursor, statement, *rest):
        seen.append(statement)
        if len(seen) == number:
            raise kind("here")

    def act(store):
        store.record_prediction(specs[0].id, {"target": 1.0})
        store.add("target", specs)
        store.record_stage("mixture", "key", {"found": 1})
        for spec in specs:
            store.mark_running(spec.id)
            store.mark_done(result_of(spec))
        store.record_verdict(specs[0].id, {"inside": 1})

    store = Store(folder)
    sa.event.listen(store.engine, "before_cursor_execute", fail)
    with suppress(Killed, ArmillaryError):
        act(store)
    store.engine.dispose()
    again = Store(folder)
    chain = again.chain()
    assert chain.intact and not [problem for problem in again.verify() if "is missing" not in problem]
    if again.verdict(specs[0].id) is None:
        if again.prediction(specs[0].id) is None:
            assert again.started_at(specs[0].id) is None
        act(again)
    assert again.chain().intact and again.order(specs[0].id).holds
    assert [again.result(spec.id) for spec in specs] == [result_of(spec) for spec in specs]


@settings(max_examples=25)
@given(number=st.integers(1, 70))
def test_an_older_store_is_taken_over_whole_or_not_at_all(number, tmp_path_factory):
    folder = old_store(tmp_path_factory.mktemp("store"))
    seen = []

    def fail(connection, cursor, statement, *rest):
        seen.append(statement)
        if len(seen) == number:
            raise Killed

    sa.event.listen(sa.Engine, "before_cursor_execute", fail)
    try:
        Store(folder)
    except Killed:
        pass
    finally:
        sa.event.remove(sa.Engine, "before_cursor_execute", fail)
    store = Store(folder)
    assert store.chain().intact and store.prediction(TARGET)["domains"] == {"浑仪": 0.1 + 0.2}


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("UPDATE stages SET content = '{\"found\": 2}'", "was changed after it was recorded"),
        ("UPDATE stages SET recorded_at = 1.5", "was changed after it was recorded"),
        ("UPDATE journal SET run = 'other' WHERE kind = 'stage'", "is not the one in the journal"),
        ("UPDATE journal SET about = '{\"stage\": \"mixture\"}' WHERE kind = 'stage'", "is not the one in the journal"),
        ("INSERT INTO stages VALUES ('anneal', 'k', 1.0, '{}')", "outcome k of stage anneal is not the one"),
    ],
)
def test_a_changed_outcome_of_a_stage_is_found(statement, said, tmp_path):
    store = Store(tmp_path)
    store.record_stage("mixture", "k", {"found": 1, "share": [0.1 + 0.2]})
    store.record_stage("mixture", "other", {"found": 3})
    assert store.stage("mixture", "k") == {"found": 1, "share": [0.1 + 0.2]} and store.chain().intact
    by_hand(store, statement)
    name = "anneal" if "anneal" in statement else "mixture"
    with pytest.raises(
        DamagedFileError, match=rf"store\.sqlite: the outcome k of stage {name} .*; restore the store from a backup"
    ):
        store.stage(name, "k")
    assert any(said in problem for problem in store.verify())


def test_an_outcome_that_was_removed_is_found_missing_and_may_be_found_again(tmp_path):
    store = Store(tmp_path)
    store.record_stage("mixture", "k", {"found": 1})
    by_hand(store, "DELETE FROM stages")
    assert store.verify() == ["the outcome k of stage mixture was removed after it was recorded"]
    assert store.stage("mixture", "k") is None
    store.record_stage("mixture", "k", {"found": 1})
    store.record_stage("mixture", "k", {"found": 2})  # a second one is not taken
    assert store.stage("mixture", "k") == {"found": 1} and store.verify() == []


def test_an_older_store_keeps_everything_and_its_chain_says_where_it_begins(tmp_path):
    store = Store(old_store(tmp_path))
    first, *rest = store.chain().entries
    assert (first.kind, first.about) == ("chain", {"format": 1, "taken_over": 9})
    assert all(entry.about["taken_over"] for entry in rest) and store.chain().intact
    assert [entry.kind for entry in rest if entry.run == TARGET] == ["prediction", "start", "result", "verdict"]
    assert store.order(TARGET).by == "clock" and store.order(TARGET).holds
    assert store.prediction(TARGET)["target"]["predicted"] == 3.0 and store.verdict(TARGET)["inside"] == 1
    assert store.result(TARGET).loss == {"sky": 3.01} and store.stage("mixture", "key") == {"found": {"sky": 1.0}}
    assert {row["run"]: row["status"] for row in store.overview()} == {
        TARGET: "done",
        "d4f65489dfc1681c": "done",
        "f21bde7687bdd9c9": "diverged",
        "c26eb918a0c44b9b": "interrupted",
    }
    assert store.rates() == []  # they did not say of which optimizer
    assert all("is missing" in problem for problem in store.verify())
    with pytest.raises(ArmillaryError, match="never rewritten"):
        store.record_prediction(TARGET, {"target": 2.0})
    assert Store(tmp_path).chain().head == store.chain().head  # once


def test_a_run_trained_by_a_launcher_started_when_its_events_say(tmp_path, tiny_corpus, make_spec):
    from armillary.train import train_run

    early, late = make_spec(seed=101), make_spec(seed=102)
    store = Store(tmp_path / "store")
    for spec in (early, late):
        store.record_prediction(spec.id, {"target": 1.0})
        train_run(spec, tiny_corpus, store.run_folder(spec.id))
    store.add("target", [early, late])
    assert store.result(early.id) is not None
    store.mark_running(late.id)  # a worker finds that it is done
    for spec in (early, late):
        order = store.order(spec.id)
        assert store.started_at(spec.id) == order.started_at > order.predicted_at
        assert (order.by, order.holds) == ("events", True)
    assert store.chain().intact


def test_a_run_trained_elsewhere_before_its_prediction_is_found(tmp_path, make_spec):
    """Its folder was not there when the prediction was made."""
    spec = make_spec()
    store = Store(tmp_path)
    store.add("a", [spec])
    store.record_prediction(spec.id, {"target": 1.0})
    store.run_folder(spec.id).mkdir()
    with (
        EventWriter(store.run_folder(spec.id) / "events.jsonl", spec.id) as events,
        pytest.MonkeyPatch.context() as patch,
    ):
        long_ago = time.time() - 1e6
        patch.setattr(time, "time", lambda: long_ago)
        events.write("start", 0)
    store.mark_running(spec.id)
    assert store.started_at(spec.id) == long_ago and not store.order(spec.id).holds


def test_a_diverged_run_that_was_judged_and_then_trained_again_stays_judged(tmp_path, make_spec):
    spec = make_spec()
    store = Store(tmp_path)
    store.record_prediction(spec.id, {"target": 1.0})
    store.add("a", [spec])
    store.mark_running(spec.id)
    store.mark_failed(spec.id, "diverged", "the loss is nan")
    store.record_verdict(spec.id, {"inside": 0, "diverged": True})
    store.reopen(spec.id, "another device")
    store.mark_running(spec.id)
    store.mark_done(result_of(spec))
    assert store.verdict(spec.id)["diverged"] and store.chain().intact
