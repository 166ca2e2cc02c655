"""Whatever ends a verb is one clear message, an exit code, and no traceback."""

import errno
import json
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sqlalchemy as sa

from armillary.cli import guarded
from armillary.recipe import ArmillaryError, UsageError


@pytest.fixture
def end(capfd, monkeypatch, tmp_path):
    """How an action ends under the guard: exit code and what stands on standard error."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def of(act):
        code = guarded(act)
        out, err = capfd.readouterr()
        assert out == "" and "Traceback" not in err
        return code, err

    return of


def raising(error):
    def act():
        raise error

    return act


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (ArmillaryError("run 7 diverged"), 1, "error run 7 diverged"),
        (UsageError("r.yaml:3: wrong"), 2, "error r.yaml:3: wrong"),
        (
            OSError(errno.ENOSPC, "No space left on device", "a/b.bin"),
            1,
            "a/b.bin: No space left on device; free space",
        ),
        (OSError(errno.EROFS, "Read-only file system", "a/b"), 1, "a/b: Read-only file system; name a writable folder"),
        (
            PermissionError(errno.EACCES, "Permission denied", "x[red]y"),
            1,
            "x[red]y: Permission denied; grant this user",
        ),
        (
            FileExistsError(errno.EEXIST, "File exists", "out"),
            1,
            "out: File exists; something else exists there; move it",
        ),
        (RuntimeError("Symlink loop from '/a/b'"), 1, "error '/a/b': the link points to itself; give another path"),
        (OSError("something"), 1, "something; finished work is kept"),
        (sa.exc.OperationalError("SELECT 1", {}, Exception("database is locked")), 1, "(database is locked); another"),
        (sa.exc.InvalidRequestError("closed"), 1, "the database cannot be used (closed)"),
        (
            pa.ArrowInvalid("not a parquet file"),
            1,
            "the file is damaged, or is a different kind of file (not a parquet file)",
        ),
        (json.JSONDecodeError("Expecting value", "", 0), 1, "is a different kind of file (Expecting value"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), 1, "the text is not UTF-8"),
        (pickle.PicklingError("cannot pickle"), 1, "a child process died"),
        (EOFError(), 1, "a child process died"),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), 1, "Broken pipe; finished work is kept"),
        (MemoryError(), 1, "out of memory (MemoryError); use fewer --workers"),
        (KeyboardInterrupt(), 1, "stopped; the same command resumes"),
        (SystemExit(130), 1, "stopped"),
        (ModuleNotFoundError("No module named 'ray'"), 1, "No module named 'ray'; install Armillary with the extra"),
        (ArmillaryError("half of a character: \ud800"), 1, "half of a character: \\ud800"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_each_end_has_its_words(end, error, code, said):
    got, err = end(raising(error))
    assert got == code and said in err and len(err.splitlines()) == 1


@pytest.mark.parametrize("code", [0, 2, None])
def test_an_exit_is_passed_on(end, code):
    assert end(raising(SystemExit(code))) == (code or 0, "")


def test_the_file_at_work_is_named(end, tmp_path):
    torn = tmp_path / "metrics.parquet"
    torn.write_bytes(b"PAR1 torn")

    class Reader:
        def __init__(self):
            self.path = torn

        def read(self):
            pq.read_table(os.fspath(self.path))

    def act(path):
        json.loads(path.read_text())

    assert str(torn) in end(Reader().read)[1]
    assert str(torn) in end(lambda: act(torn))[1]
    missing = tmp_path / "nowhere"
    assert end(missing.read_bytes) == (1, f"error {missing}: No such file or directory; finished work is kept, and the same command resumes\n")  # fmt: skip  # noqa: E501


def test_a_rename_that_fails_names_the_file_that_is_meant(end, tmp_path):
    (tmp_path / "plan.json").mkdir()
    (tmp_path / "..plan.json.aside").write_text("{}")
    code, said = end(lambda: (tmp_path / "..plan.json.aside").replace(tmp_path / "plan.json"))
    assert code == 1 and f"error {tmp_path}/plan.json: Is a directory" in said.replace("\n", "")


def test_a_fault_of_the_program_says_how_to_report_it(end, monkeypatch, capfd):
    secret = "postgresql://me:hunter22@host/x"
    monkeypatch.setattr(sys, "argv", ["armillary", "runs", "--database", secret])
    code, err = end(raising(KeyError("surprise")))
    assert code == 1 and "this is a bug in Armillary (KeyError: 'surprise')" in err and len(err.splitlines()) == 1
    file = Path(re.search(r"report it with (\S+);", err)[1])
    written = file.read_text()
    assert "Traceback" in written and "surprise" in written and "hunter22" not in written
    assert file.stat().st_mode & 0o077 == 0
    monkeypatch.setattr("tempfile.mkstemp", lambda **_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
    assert "please report it" in end(raising(KeyError("surprise")))[1]
    monkeypatch.setenv("ARMILLARY_DEBUG", "1")
    assert guarded(raising(ValueError("deep"))) == 1
    assert "Traceback (most recent call last)" in capfd.readouterr().err


@pytest.mark.parametrize(
    "text",
    [
        "postgresql+psycopg://me:hunter22@host:5432/x: no route",
        "postgresql://me:hun/ter22@host/x",
        "postgresql://me:p@hunter22@host/x",
        "could not connect to postgresql://host/x?user=me&password=hunter22&sslmode=require",
        "?sslpassword=hunter22",
        "connection to 'host=h user=me password=hunter22' failed",
        "connect(host='h', password='hunter22', user='me')",
        "{'user': 'me', 'password': 'hunter22'}",
        "PASSWORD=hunter22",
    ],
)
def test_no_password_is_printed(end, text, monkeypatch):
    monkeypatch.setenv("ARMILLARY_DATABASE", "postgresql://me:hun%2Fter22@host/x")
    for error in (UsageError(text), OSError(text), sa.exc.OperationalError(text, {}, Exception(text)), KeyError(text)):
        err = end(raising(error))[1]
        assert "hunter22" not in err and "hun/ter22" not in err and "hun%2Fter22" not in err


def test_the_given_password_is_masked_wherever_it_stands(end, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["armillary", "--database", "postgresql://h/x?password=s3cret%21x"])
    err = end(raising(UsageError("server said: user me with s3cret!x or s3cret%21x is not known")))[1]
    assert "s3cret" not in err and "is not known" in err


def test_a_reader_that_ends_early_is_not_an_error():
    """``armillary runs | head``: no message, no traceback, also not from the interpreter at its end."""
    program = (
        "import sys; from armillary.cli import guarded\n"
        "sys.exit(guarded(lambda: [print('x' * 1000) for _ in range(1000)]))"
    )
    first = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert first.stdout.readline()
    first.stdout.close()
    err = first.stderr.read()
    assert first.wait(60) == 1 and err == b""


def test_ctrl_c_while_packages_load_is_a_message():
    """Nothing but the standard library is loaded before the guard; each package that a verb loads is loaded in it."""
    program = (
        "import builtins, sys\nimport armillary.cli\n"
        "print(sorted({name.split('.')[0] for name in sys.modules} & {'typer', 'rich', 'pydantic', 'yaml', 'torch'}))\n"
        "load = builtins.__import__\n"
        "def interrupted(name, *rest):\n"
        "    if name == 'armillary.cli.verbs':\n"
        "        raise KeyboardInterrupt\n"
        "    return load(name, *rest)\n"
        "builtins.__import__ = interrupted\n"
        "armillary.cli.main()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=120)
    assert done.stdout == "[]\n" and done.returncode == 1
    assert done.stderr == "stopped; the same command resumes\n"
