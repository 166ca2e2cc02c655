"""The store on a real PostgreSQL server, which a team shares: what holds on SQLite holds there."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa

from armillary.evaluate import Examination, Item, Result, write_examination
from armillary.goodput import read_events
from armillary.launch import LocalExecutor
from armillary.recipe import ArmillaryError, ForeignFileError, Recipe, UsageError, Validation
from armillary.store import Reader, RunFilter, Store
from armillary.study import Lab, anneal_study, make_plan, mixture_study
from armillary.study.examinations import Question
from armillary.study.examined import open_store, record_examination

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parents[1] / "launch" / "workers" / "fleet_script.py"
STUDIES = 240  # enough that two processes that add them at once meet


def programs():
    """The folder of the server's programs, and how to start them: the server refuses to be run by root."""
    pytest.importorskip("psycopg", reason="psycopg, the driver of PostgreSQL, is not installed")
    found = shutil.which("initdb") or max(map(str, Path("/usr/lib/postgresql").glob("*/bin/initdb")), default=None)
    if found is None:
        pytest.skip("no PostgreSQL server is installed (initdb)")
    if os.geteuid() != 0:
        return Path(found).parent, {}
    import pwd

    try:
        return Path(found).parent, {"user": pwd.getpwnam("postgres").pw_uid}
    except KeyError:
        pytest.skip("a PostgreSQL server does not run as root, and there is no user postgres")


@pytest.fixture(scope="module")
def server():
    """A server in a temporary folder that listens only on a socket there; a call restarts it."""
    folder, options = programs()
    with tempfile.TemporaryDirectory(prefix="armillary-") as place:
        os.chown(place, options.get("user", -1), -1)

        def control(*command):
            subprocess.run([folder / command[0], *command[1:]], check=True, capture_output=True, cwd=place, **options)

        data = f"{place}/data"
        control("initdb", "-D", data, "-U", "armillary", "-A", "trust", "-E", "UTF8", "--no-sync")
        start = ["-w", "-D", data, "-l", f"{place}/log", "-o", f"-k {place} -c listen_addresses='' -c fsync=off"]
        control("pg_ctl", "start", *start)
        yield place, lambda: control("pg_ctl", "restart", "-m", "immediate", *start)
        control("pg_ctl", "stop", "-w", "-D", data, "-m", "immediate")


@pytest.fixture
def url(server, request):
    """A new database."""
    place, _ = server
    admin = sa.create_engine(f"postgresql+psycopg://armillary@/postgres?host={place}", isolation_level="AUTOCOMMIT")
    name = f"d{abs(hash(request.node.nodeid))}"
    with admin.connect() as db:
        db.execute(sa.text(f"CREATE DATABASE {name}"))
    admin.dispose()
    return f"postgresql+psycopg://armillary@/{name}?host={place}"


@contextmanager
def at_once(*actions):
    """Each in a thread, begun together; what one of them raised is raised here."""
    barrier, errors = threading.Barrier(len(actions)), []

    def perform(action):
        barrier.wait()
        try:
            action()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=perform, args=(action,)) for action in actions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    yield


def test_two_programs_that_want_the_same_runs_at_once(url, make_spec, undisturbed, outcome, tiny_corpus, tmp_path):
    """Each has two workers and the same runs in another order; every run is trained once, by either."""
    specs = [make_spec(seed=seed, steps=60, validation=Validation(windows=4)) for seed in range(200, 206)]
    paths = [tmp_path / f"{spec.id}.json" for spec in specs]
    for path, spec in zip(paths, specs, strict=True):
        path.write_text(json.dumps(spec.model_dump(mode="json")))
    command = [sys.executable, str(SCRIPT), str(tmp_path / "store"), str(tiny_corpus.path)]
    settings = {**os.environ, "ARMILLARY_DATABASE": url}
    programs = [
        subprocess.Popen([*command, *map(str, order)], env=settings, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for order in (paths, paths[::-1])
    ]
    for program in programs:
        _, err = program.communicate(timeout=120)
        assert program.returncode == 0, err.decode()
    store = Store(tmp_path / "store", url)
    assert Counter((row["run"], row["status"]) for row in store.overview()) == {(s.id, "done"): 1 for s in specs}
    for spec in specs:
        assert outcome(store.run_folder(spec.id)) == undisturbed(spec)
        assert store.result(spec.id).run == spec.id
        kinds = Counter(event.kind for event in read_events(store.run_folder(spec.id) / "events.jsonl"))
        assert (kinds["start"], kinds["resume"], kinds["end"]) == (1, 0, 1)


def test_members_of_a_team_open_and_fill_one_database_at_once(url, make_spec, tmp_path):
    """From different folders, as on machines without a shared disk; in opposite orders."""
    specs = [make_spec(seed=seed) for seed in range(STUDIES)]

    def member(number):
        store = Store(tmp_path / str(number), url)
        store.add("study", specs[:: 1 - 2 * (number % 2)])
        store.record_stage("mixture", "key", {"from": number})
        store.record_prediction("0123456789abcdef", {"target": 1.0})

    with at_once(*(lambda number=number: member(number) for number in range(4))):
        store = Store(tmp_path / "0", url)
    assert len(store.overview()) == STUDIES and store.stage("mixture", "key")["from"] in range(4)
    chain = store.chain()
    assert chain.intact and sorted(entry.kind for entry in chain.entries) == ["chain", "prediction", "stage"]


def test_histories_written_at_once_are_one_chain(url, make_spec, tmp_path):
    specs = [make_spec(seed=seed) for seed in range(8)]

    def member(number):
        store = Store(tmp_path / str(number), url)
        for spec in specs[number::4]:
            store.record_prediction(spec.id, {"target": 1.0})
            store.add("study", [spec])
            store.mark_running(spec.id)
            store.mark_failed(spec.id, "diverged", "the loss is nan")
            store.record_verdict(spec.id, {"inside": 0})

    with at_once(*(lambda number=number: member(number) for number in range(4))):
        store = Store(tmp_path / "0", url)
    chain = store.chain()
    assert chain.intact and len(chain.entries) == 1 + 3 * len(specs)
    assert all(store.order(spec.id).holds for spec in specs)
    with store.engine.begin() as db:
        db.execute(sa.text("ALTER TABLE predictions DISABLE TRIGGER ALL"))
        db.execute(sa.text("UPDATE predictions SET content = '{}', sha256 = '44136fa355b3678a'"))
    assert not store.chain().intact
    with pytest.raises(ArmillaryError, match="was changed after it was recorded"):
        store.prediction(specs[0].id)


def test_a_database_of_another_program_is_refused_and_not_touched(url, tmp_path):
    engine = sa.create_engine(url)
    with engine.begin() as db:
        db.execute(sa.text("CREATE TABLE albums (title text)"))
    with pytest.raises(ForeignFileError, match=r"belongs to another program \(albums\)"):
        Store(tmp_path / "store", url)
    assert sa.inspect(engine).get_table_names() == ["albums"]
    with engine.begin() as db:
        db.execute(sa.text("CREATE SCHEMA ours"))
    assert Store(tmp_path / "store", f"{url}&options=-csearch_path%3Dours").verify() == []
    assert sa.inspect(engine).get_table_names() == ["albums"]


def test_a_store_of_format_1_is_taken_over(url, make_spec, tmp_path):
    spec, store = make_spec(), Store(tmp_path, url)
    store.record_prediction(spec.id, {"target": 1.0})
    store.add("a", [spec])
    store.mark_running(spec.id)
    with store.engine.begin() as db:
        for statement in (
            "DROP TABLE journal",
            "ALTER TABLE runs DROP COLUMN folder, DROP COLUMN owner, DROP COLUMN parents",
            "UPDATE format SET version = 1",
        ):
            db.execute(sa.text(statement))
    with at_once(*[lambda: Store(tmp_path / "other", url), lambda: Store(tmp_path, url)]):
        again = Store(tmp_path, url)
    assert [entry.kind for entry in again.chain().entries] == ["chain", "prediction", "start"]
    assert again.chain().intact and again.order(spec.id).by == "clock"


def test_a_connection_that_is_lost_in_a_call_is_one_line_and_the_next_call_works(url, make_spec, tmp_path):
    store = Store(tmp_path, url)
    with pytest.raises(ArmillaryError, match="is the server running") as caught, store.database.writing() as db:
        mine = db.execute(sa.text("SELECT pg_backend_pid()")).scalar()
        with sa.create_engine(url).connect() as other:
            other.execute(sa.text(f"SELECT pg_terminate_backend({mine})"))
        db.execute(sa.text("SELECT 1"))
    assert "\n" not in str(caught.value)
    store.add("a", [make_spec()])
    assert len(store.overview()) == 1
    with pytest.raises(UsageError, match="pg_dump"):
        store.backup(tmp_path / "copy")


def test_what_was_predicted_is_never_rewritten(url, tmp_path):
    store = Store(tmp_path, url)
    run = "0123456789abcdef"
    content = {"low": 0.1 + 0.2, "high": 1e-300, "domains": {"浑仪": -0.0}}
    store.record_prediction(run, content)
    store.record_prediction(run, content)
    with pytest.raises(ArmillaryError, match="never rewritten"):
        store.record_prediction(run, {"low": 0.0})
    store.record_verdict(run, {"inside": 1})
    store.record_verdict(run, {"inside": 2})
    for statement in (
        "UPDATE predictions SET content = '{}'",
        "DELETE FROM verdicts",
        "TRUNCATE predictions, verdicts",
        "INSERT INTO predictions SELECT * FROM predictions ON CONFLICT (run) DO UPDATE SET content = '{}'",
    ):
        with pytest.raises(sa.exc.SQLAlchemyError, match="never rewritten"), store.engine.begin() as db:
            db.execute(sa.text(statement))
    again = Store(tmp_path, url)
    known = again.prediction(run)
    assert {key: known[key] for key in content} == content and again.verdict(run)["inside"] == 1


def test_a_study_outlives_a_restart_of_its_server(server, url, make_spec, tmp_path):
    store = Store(tmp_path, url)
    store.add("a", [make_spec()])
    server[1]()
    store.mark_running(make_spec().id)
    assert [row["status"] for row in store.overview()] == ["running"]


def test_studies_find_what_they_find_on_sqlite(url, tiny_corpus_spec, tiny_corpus, tmp_path):
    recipe = Recipe.model_validate(
        {
            "name": "tiny",
            "corpus": tiny_corpus_spec.model_dump(),
            "target": {"voyage": 1},
            "model": {"depth": 1},
            "families": [{"name": "base", "width_per_layer": 16, "head_dim": 8}],
            "training": {"tokens": 4000, "context_length": 16, "batch_sequences": 4, "precision": "fp32"},
            "study": {
                "mixture": {"depth": 1, "runs": 8, "tokens": 2000, "candidates": 1, "confirm_seeds": 2},
                "anneal": {"depth": 1, "tokens": 2000, "shares": [0.2, 0.4], "shapes": ["linear"], "sharpen": [1]},
            },
            "validation_windows": 4,
        }
    )

    def studied(store):
        with LocalExecutor(store, tiny_corpus.path, 2) as executor:
            plan = make_plan(recipe, tiny_corpus, executor, ("mixture", "anneal"))
            lab = Lab(recipe, tiny_corpus, store, executor, plan, lambda *told: None)
            found = [mixture_study(lab)]
            found.append(anneal_study(lab, found[0].found))
            assert mixture_study(lab) == found[0]  # from the store
        return found

    shared = Store(tmp_path / "postgresql", url)
    assert studied(shared) == studied(Store(tmp_path / "sqlite"))
    assert {row["how"] for row in shared.rates()} >= {"probe"}


def test_a_reader_sees_the_same_as_the_store_and_cannot_write(url, make_spec, tmp_path):
    store = Store(tmp_path / "store", url)
    specs = [make_spec(seed=seed) for seed in range(5)]
    store.add("a", specs)
    store.record_prediction(specs[0].id, {"run": specs[0].id, "target": {"predicted": 1.0, "low": 0.5, "high": 1.5}})
    reader = Reader(tmp_path / "store", url)
    assert reader.overview() == store.overview() and reader.counts() == {"pending": 5}
    wanted = RunFilter(study="a", tags=("seed-3",), mixture=(("sky", ">=", 0.5), ("sea", "=", 0.2)))
    assert [row.run for row in reader.page(wanted, 10)] == [specs[3].id]
    first = reader.page(RunFilter(), 3)
    rest = reader.page(RunFilter(), 3, (first[-1].created_at, first[-1].run))
    assert {row.run for row in (*first, *rest)} == {spec.id for spec in specs}
    assert reader.recorded_predictions(9)[0].problem is None and reader.chain().intact
    with pytest.raises(ArmillaryError, match="reading only"):
        reader.add("b", specs)
    with pytest.raises(sa.exc.DBAPIError), reader.database.engine.begin() as db:
        db.execute(sa.text("DELETE FROM study_runs"))
    reader.close()


def test_examinations_and_forecasts_are_recorded_in_a_team_store(url, make_spec, tmp_path):
    """With the verbs' --database, or ARMILLARY_DATABASE; a database without a store is refused, and stays empty."""
    folder, run = tmp_path / "store", make_spec().id
    folder.mkdir()
    with pytest.raises(ArmillaryError, match="contains no store yet"):
        open_store(folder, url)
    assert sa.inspect(sa.create_engine(url)).get_table_names() == []
    store = Store(folder, url)
    store.add("study", [make_spec()])
    item = Item("a" * 16, "mmlu", "a" * 16, "s", "1", ("1",), "1", None, {"acc": 0.3})
    score = Result("mmlu", "mmlu", "acc", 0.3, 0.2, 0.4, 1, 0.0, None, "s")
    model = {"model": "m", "sha256": "c" * 64, "lineage": {"run": run, "corpus": "d" * 64}}
    write_examination(tmp_path / "exam", Examination((score,), {"mmlu": (item,)}, model))
    row = record_examination(open_store(folder, url), tmp_path / "exam")
    assert store.examinations()[run][0][1]["sha256"] == row["sha256"]
    store.record_prediction(
        Question(run, "mmlu").id,
        {"run": run, "score": {"predicted": 0.3, "low": 0.25, "high": 0.35}, "before_the_run": True},
    )
    command = [sys.executable, "-m", "armillary", "forecast", "judge", str(tmp_path / "exam"), "--run", run]
    command += ["--task", "mmlu", "--store", str(folder), "--json"]
    ended = subprocess.run(
        command, check=False, capture_output=True, text=True, env=os.environ | {"ARMILLARY_DATABASE": url}
    )
    assert ended.returncode == 0 and json.loads(ended.stdout)["inside"] == 1, ended.stderr
    ended = subprocess.run([*command, "--database", url], check=False, capture_output=True, text=True)
    assert ended.returncode == 0 and store.verdict(Question(run, "mmlu").id)["inside"] == 1, ended.stderr
    assert store.verify() == [] and not (folder / "store.sqlite").exists()
