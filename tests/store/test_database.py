"""A database that is another program's, torn, locked, full or gone: left as it is, and one line says what to do."""

import errno
import hashlib
import os
import re
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st

from armillary.recipe import (
    ArmillaryError,
    DamagedFileError,
    ForeignFileError,
    UsageError,
    passwords_in,
    without_passwords,
)
from armillary.store import Store, database

OLD = Path(__file__).with_name("store-format-1.sql")


def contents(folder):
    """Every file of a folder and what is in it."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir() if path.is_file()}


def made(path, *statements):
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        for statement in statements:
            db.execute(statement)


FOREIGN = {
    "tables": ("CREATE TABLE albums (title)", "INSERT INTO albums VALUES ('moon')"),
    "a log beside it": ("PRAGMA journal_mode=WAL", "CREATE TABLE albums (title)"),
    "a table named as one of ours": ("CREATE TABLE runs (distance_km REAL)",),
    "a format of its own": ("CREATE TABLE format (version INTEGER PRIMARY KEY, codec)", "CREATE TABLE runs (id)"),
    "a format of its own beside its tables": ("CREATE TABLE format (version INTEGER)", "CREATE TABLE albums (title)"),
    "an application's number": ("PRAGMA application_id = 252006673", "CREATE TABLE t (x)"),
    "a view": ("CREATE VIEW v AS SELECT 1",),
    "a view named as one of ours": ("CREATE VIEW format AS SELECT 1 AS version",),
}


@pytest.mark.parametrize("statements", FOREIGN.values(), ids=FOREIGN)
@pytest.mark.parametrize("where", ["in the folder", "by url"])
def test_a_database_of_another_program_is_refused_and_not_touched(statements, where, tmp_path):
    place = tmp_path / "store"
    place.mkdir()
    file = (place if where == "in the folder" else tmp_path) / "store.sqlite"
    made(file, *statements)
    before = contents(file.parent)
    with pytest.raises(ForeignFileError, match="belongs to another program") as caught:
        Store(place, None if where == "in the folder" else f"sqlite:///{file}")
    assert str(file) in str(caught.value) and "--database" in str(caught.value)
    assert {name: value for name, value in contents(file.parent).items() if name != ".lock"} == before


def test_a_database_of_another_program_that_it_has_open_is_not_touched(tmp_path):
    file = tmp_path / "store.sqlite"
    with closing(sqlite3.connect(file, isolation_level=None)) as other:
        other.execute("PRAGMA journal_mode=WAL")
        other.execute("CREATE TABLE albums (title)")  # in the log alone
        with pytest.raises(ForeignFileError, match="albums"):
            Store(tmp_path)
        assert other.execute("SELECT name FROM sqlite_master").fetchall() == [("albums",)]


@pytest.mark.parametrize("version", [99, 0, -1])
def test_a_store_of_an_unknown_format_is_refused_and_not_touched(version, tmp_path):
    Store(tmp_path).close()
    made(tmp_path / "store.sqlite", f"UPDATE format SET version = {version}", "DROP TABLE stages")
    before = contents(tmp_path)
    with pytest.raises(
        ForeignFileError, match=f"store format {version}; this version reads 1 to 4; .* was not changed"
    ):
        Store(tmp_path)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("target", ["gone/store.sqlite", "store.sqlite"])
def test_a_link_that_leads_nowhere_is_not_replaced_by_a_new_store(target, tmp_path):
    (tmp_path / "store.sqlite").symlink_to(target)
    with pytest.raises(DamagedFileError, match=f"is a link to {target}, which cannot be reached; mount"):
        Store(tmp_path)
    assert (tmp_path / "store.sqlite").is_symlink()


@pytest.mark.parametrize("suffix", ["wal", "journal"])
def test_what_is_left_of_a_database_that_is_gone_is_not_taken_into_a_new_one(suffix, tmp_path):
    left = tmp_path / f"store.sqlite-{suffix}"
    left.write_bytes(b"changes")
    with pytest.raises(DamagedFileError, match=f"is missing, but store.sqlite-{suffix} has changes to it"):
        Store(tmp_path)
    assert left.read_bytes() == b"changes" and not (tmp_path / "store.sqlite").exists()


def test_an_empty_database_of_no_program_becomes_a_store(tmp_path):
    made(tmp_path / "store.sqlite", "VACUUM")
    assert Store(tmp_path).verify() == []


def test_a_store_whose_creation_was_killed_is_completed(tmp_path):
    """Also by a version that created its tables one by one."""
    made(tmp_path / "store.sqlite", "CREATE TABLE format (version INTEGER NOT NULL, PRIMARY KEY (version))")
    made(tmp_path / "store.sqlite", "CREATE TABLE study_runs (study VARCHAR(64), run VARCHAR(16))")
    assert Store(tmp_path).study_runs("any") == []


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "is empty"),
        (b"a poem about the moon, which is no database " * 100, "not a database"),
        (b"SQLite format 3\0", "truncated"),
        (b"\0" * 4096, "not a database"),
    ],
)
def test_a_file_that_is_no_database_is_named_with_the_remedy_and_stays(data, said, tmp_path):
    file = tmp_path / "store.sqlite"
    file.write_bytes(data)
    with pytest.raises(DamagedFileError, match=f"{re.escape(str(file))}: .*{said}.*backup"):
        Store(tmp_path)
    assert file.read_bytes() == data


@pytest.mark.parametrize("share", [0.999, 0.7, 0.3, 0.05])
def test_a_torn_store_is_named(share, tmp_path, make_spec):
    store = Store(tmp_path)
    store.add("a", [make_spec(seed=seed) for seed in range(40)])
    store.close()
    file = tmp_path / "store.sqlite"
    file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
    with pytest.raises(DamagedFileError, match=f"{re.escape(str(file))}: .*truncated: .* backup"):
        Store(tmp_path)


@settings(max_examples=60)
@given(data=st.data())
def test_whatever_bytes_of_a_store_are_lost_no_error_is_another_ones(data, tmp_path_factory):
    """Flipped, emptied, cut: every method answers or raises one line, and never the database's own error."""
    folder = tmp_path_factory.mktemp("store")
    made(
        folder / "store.sqlite", "BEGIN", *OLD.read_text().replace("BEGIN TRANSACTION;", "").split(";\n")[:-2], "COMMIT"
    )
    whole = bytearray((folder / "store.sqlite").read_bytes())
    at = data.draw(st.integers(0, len(whole) - 1))
    length = data.draw(st.sampled_from([1, 16, 4096, len(whole)]))
    if data.draw(st.booleans()):
        whole[at : at + length] = bytes(b ^ 0x55 for b in whole[at : at + length])
    else:
        del whole[at:]
    (folder / "store.sqlite").write_bytes(whole)
    try:
        store = Store(folder)
    except ArmillaryError as error:
        assert str(folder / "store.sqlite") in str(error)
        return
    for act in (store.verify, store.overview, store.rates, lambda: store.mark_running("f2f43e9d3ffeeb86")):
        try:
            act()
        except ArmillaryError as error:
            assert "\n" not in str(error)


def test_a_locked_database_is_waited_for_and_its_holder_named(tmp_path, make_spec, monkeypatch):
    monkeypatch.setattr(database, "_BUSY_MS", 100)
    store = Store(tmp_path)
    script = (
        "import sqlite3, sys; db = sqlite3.connect(sys.argv[1], isolation_level=None); db.execute('BEGIN IMMEDIATE');"
        "print('locked', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "store.sqlite")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout.readline() == "locked\n"
    try:
        for act in (
            lambda: store.mark_failed("x", "failed", "y"),
            lambda: store.add("a", [make_spec()]),
            lambda: store.record_stage("a", "b", {}),
            lambda: store.record_prediction("0123456789abcdef", {"target": 1.0}),
            lambda: Store(tmp_path),
        ):
            with pytest.raises(ArmillaryError, match=f"store.sqlite: .* was locked .* process {holder.pid} ") as caught:
                act()
            assert "\n" not in str(caught.value)
        assert store.overview() == []  # reading goes on
    finally:
        holder.communicate("")
    store.add("a", [make_spec()])
    assert len(store.overview()) == 1


def test_a_lock_that_passes_is_not_noticed(tmp_path, make_spec):
    store = Store(tmp_path)
    with closing(sqlite3.connect(tmp_path / "store.sqlite", isolation_level=None, check_same_thread=False)) as other:
        other.execute("BEGIN IMMEDIATE")
        release = threading.Timer(0.3, lambda: other.execute("COMMIT"))
        release.start()
        store.add("a", [make_spec()])
        release.join()
    assert len(store.overview()) == 1


def failing(store, number, error):
    """Let the statement of that number, and all after it, fail."""
    seen = []

    def fail(connection, cursor, statement, *rest):
        if not statement.startswith(("BEGIN", "PRAGMA")):
            seen.append(statement)
            if len(seen) >= number:
                raise error

    sa.event.listen(store.engine, "before_cursor_execute", fail)
    return lambda: sa.event.remove(store.engine, "before_cursor_execute", fail)


def sqlite_error(name):
    error = sqlite3.OperationalError("said by SQLite")
    error.sqlite_errorname = name
    return sa.exc.OperationalError("INSERT ...", {"secret": "parameters"}, error)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("SQLITE_FULL", "the disk is full; free space"),
        ("SQLITE_READONLY_DBMOVED", "cannot be written"),
        ("SQLITE_IOERR_WRITE", "the disk failed"),
        ("SQLITE_CORRUPT", "restore it from a backup"),
        ("SQLITE_CANTOPEN", "make the file and its folder writable"),
        ("SQLITE_ERROR", "said by SQLite"),
    ],
)
def test_what_the_database_says_is_one_line_with_its_file(name, said, tmp_path, make_spec):
    store = Store(tmp_path)
    store.add("a", [make_spec()])
    failing(store, 1, sqlite_error(name))
    run = make_spec().id
    for act in (
        store.overview, store.rates, store.verify, store.chain,
        lambda: store.add("b", [make_spec()]), lambda: store.mark_running(run), lambda: store.run_spec(run),
        lambda: store.mark_failed(run, "failed", "no"), lambda: store.result(run), lambda: store.stage("a", "b"),
        lambda: store.record_stage("a", "b", {}), lambda: store.prediction(run), lambda: store.verdict(run),
        lambda: store.record_prediction(run, {}), lambda: store.record_verdict(run, {}), lambda: store.order(run),
        lambda: store.study_runs("a"), lambda: store.started_at(run), lambda: store.missing_files(run),
        lambda: store.reopen(run), lambda: store.record_rate({"machine": "m"}, seconds=1.0), store.rates_overview,
    ):  # fmt: skip
        with pytest.raises(ArmillaryError, match=said) as caught:
            act()
        assert str(caught.value).startswith(f"{tmp_path / 'store.sqlite'}: ") and "parameters" not in str(caught.value)
    store.flush()  # at its best
    store.close()


def test_a_folder_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(ArmillaryError, match=r"file.*: Not a directory; something else is there"):
        Store(tmp_path / "file" / "store")

    def refuse(path, *arguments, **options):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(ArmillaryError, match=r"\.lock: Read-only file system"):
        Store(tmp_path / "store")


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP])
def test_a_file_system_without_locks_is_said_in_one_line(number, tmp_path, monkeypatch):
    def refuse(file, how):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", refuse)
    with pytest.raises(ArmillaryError, match=r"\.lock: this file system does not support locks .*NFSv4"):
        Store(tmp_path)


def test_the_file_alone_is_the_whole_database_after_each_stage_and_at_the_end(tmp_path, make_spec):
    """Copied while the store is open, without the log beside it."""
    store = Store(tmp_path / "store")
    store.add("a", [make_spec()])
    store.record_stage("mixture", "key", {"found": 1})

    def copied(name):
        (tmp_path / name).mkdir()
        (tmp_path / name / "store.sqlite").write_bytes((tmp_path / "store" / "store.sqlite").read_bytes())
        return Store(tmp_path / name)

    assert copied("stage").stage("mixture", "key") == {"found": 1}
    store.add("b", [make_spec()])
    store.flush()
    assert copied("flushed").study_runs("b") == [make_spec().id]
    store.add("c", [make_spec()])
    store.close()
    assert not (tmp_path / "store" / "store.sqlite-wal").exists()
    assert copied("closed").study_runs("c") == [make_spec().id]
    assert store.study_runs("c") == [make_spec().id]  # it opens again


def test_a_program_that_just_ends_leaves_the_whole_database_in_its_file(tmp_path):
    script = (
        "import sys; from pathlib import Path; from armillary.store import Store; Store(Path(sys.argv[1])).add('a', [])"
    )
    script += ".__class__; s = Store(Path(sys.argv[1])); s.record_prediction('0123456789abcdef', {'target': 1.0})"
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True)
    assert sorted(path.name for path in tmp_path.glob("store.sqlite*")) == ["store.sqlite"]
    assert Store(tmp_path).prediction("0123456789abcdef")["target"] == 1.0


def test_a_backup_is_whole_new_and_checked(tmp_path, make_spec):
    store = Store(tmp_path / "store")
    store.add("a", [make_spec()])
    store.record_prediction("0123456789abcdef", {"target": 1.0})
    copy = tmp_path / "copy" / "store.sqlite"
    store.backup(copy)  # which makes the folder, as every --out does
    assert [path.name for path in copy.parent.iterdir()] == ["store.sqlite"]
    again = Store(copy.parent)
    assert again.prediction("0123456789abcdef") == store.prediction("0123456789abcdef") and again.chain().intact
    before = copy.read_bytes()
    with pytest.raises(UsageError, match="already exists"):
        store.backup(copy)
    assert copy.read_bytes() == before


def test_a_backup_that_fails_leaves_nothing(tmp_path, monkeypatch):
    store = Store(tmp_path / "store")

    def full(path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(database, "sync", full)
    with pytest.raises(ArmillaryError, match="No space left on device"):
        store.backup(tmp_path / "copy.sqlite")
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+psycopg://me:s3cr%40t@nohost.invalid/db",
        "postgresql+psycopg://me@nohost.invalid/db?password=s3cr%40t",
        "postgresql+psycopg://nohost.invalid/db?user=me&sslpassword=s3cr%40t&connect_timeout=2",
        "postgresql+psycopg://me:s3cr%40t@nohost.invalid/db?pass_word=s3cr%40t",
        "postgresql+psycopg://me:s3cr@t@nohost.invalid:s3cr@t/db",
        "://me:s3cr%40t@nohost.invalid/db",
    ],
)
def test_no_message_holds_a_password(url, tmp_path):
    with pytest.raises(ArmillaryError) as caught:
        Store(tmp_path, url)
    assert "s3cr" not in str(caught.value) and "\n" not in str(caught.value)


@given(st.text("abc@:/?&=%.-1", max_size=30), st.text("xyzXYZ0189", min_size=8, max_size=12))
def test_passwords_are_hidden_in_any_text(noise, password):
    for text in (
        f"{noise} postgresql+psycopg://me:{password}@host/db {noise}",
        f"armillary run r.yaml --database 'mysql://h/d?charset=utf8&password={password}' {noise}",
        f"{noise} postgresql://h/d?sslpassword={password}&x=1",
    ):
        assert password not in without_passwords(text)


@pytest.mark.parametrize(
    "text",
    [
        "host=h password = p4ss22 dbname=x",
        "host=h password='p4 ss22' dbname=x",
        r"host=h password='p4\'ss22' dbname=x",
        'connect(password="p4 ss22", host="h")',
        "s3://AKIA:p4/ss22+x@bucket/text",
        "s3://AKIA:12/p4ss22@bucket/text",
        "https://host/text?key=p4ss22",
        "https://host/text.jsonl?sv=2&sig=p4ss22&se=9",
        "https://host/text?api-key=1&apikey=p4ss22",
        "https://host/text?X-Amz-Credential=p4ss22&X-Amz-Signature=p4ss22",
    ],
)
def test_a_secret_in_any_notation_is_hidden(text):
    hidden = without_passwords(text)
    assert "ss22" not in hidden and "***" in hidden
    assert any("ss22" in found for found in passwords_in(text))


@pytest.mark.parametrize(
    "text",
    [
        "http://127.0.0.1:8080/v1/models@main: not found",
        "password authentication failed for user me",
        "s3://bucket/folder/a@b.jsonl: the file is empty",
        "https://host/text?page=2&keep=all",
    ],
)
def test_what_is_no_secret_stays(text):
    assert without_passwords(text) == text and passwords_in(text) == []


def test_a_url_of_sqlite_names_a_file_or_memory(tmp_path, make_spec):
    with pytest.raises(UsageError, match="give the path of a file"):
        Store(tmp_path, "sqlite:///file:x?uri=true")
    store = Store(tmp_path, "sqlite://")
    store.add("a", [make_spec()])
    store.flush()
    assert store.study_runs("a") == [make_spec().id] and store.chain().intact
    assert not list(tmp_path.glob("*.sqlite*"))


def test_a_lock_of_this_process_is_said_to_be_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(database, "_BUSY_MS", 50)
    store = Store(tmp_path)
    with closing(sqlite3.connect(tmp_path / "store.sqlite", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(ArmillaryError, match="open in this process"):
            store.mark_failed("x", "failed", "y")
