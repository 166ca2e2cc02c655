"""``make`` in a fresh folder: with an old Python, and with an environment that does not fit."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# A Python that answers what the Makefile asks, and whose environments hold a copy of itself.
FAKE = """#!/bin/sh
echo "$0 $*" >> "$LOG"
case "$*" in
    *'version_info < (3, 11)'*) exit {old} ;;
    *'print('*) echo {version} ;;
    '-m venv '*)
        mkdir -p "$3/bin"
        cp "$0" "$3/bin/python"
        echo "command = $0 -m venv $3" > "$3/pyvenv.cfg" ;;
esac
"""


@pytest.fixture
def make(tmp_path, monkeypatch):
    """Run ``make setup`` in a copy of what it needs, in a folder with a space, and return the installs that it made."""
    if shutil.which("make") is None:
        pytest.skip("make is not here")
    folder = tmp_path / "a folder"
    (folder / ".ci").mkdir(parents=True)
    for name in ("Makefile", ".ci/environment", "pyproject.toml", "constraints.txt", "demo-corpora.txt"):
        shutil.copy(ROOT / name, folder / name)
    log = tmp_path / "log"
    monkeypatch.setenv("LOG", str(log))
    monkeypatch.delenv("PYTHON", raising=False)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    (tmp_path / "bin").mkdir()
    for name, version, old in (("python3.11", "3.11", 0), ("python3.12", "3.12", 0), ("python3.9", "3.9", 1)):
        fake = tmp_path / "bin" / name
        fake.write_text(FAKE.format(version=version, old=old))
        fake.chmod(0o755)

    def run(*arguments, where=folder):
        log.write_text("")
        done = subprocess.run(["make", "setup", *arguments], cwd=where, capture_output=True, text=True, check=False)
        done.calls = log.read_text()
        return done

    run.folder = folder
    return run


def test_an_old_python_is_refused_before_anything_exists(make):
    done = make("PYTHON=python3.9")
    assert done.returncode != 0 and "python3.9 is Python 3.9; Armillary needs 3.11 or newer" in done.stderr
    assert not (make.folder / ".venv").exists() and "pip" not in done.calls.replace("sys, pip", "")
    done = make("PYTHON=python4.9")
    assert done.returncode != 0 and "python4.9 is not here" in done.stderr


def test_an_environment_that_fits_stays(make):
    assert make().returncode == 0
    mark = make.folder / ".venv" / "mark"
    mark.touch()
    done = make()
    assert done.returncode == 0 and "pip install" not in done.calls and mark.exists()
    assert make("PYTHON=python3.11").returncode == 0 and mark.exists()
    (make.folder / ".venv" / ".ready").unlink()  # the install was interrupted
    done = make()
    assert done.returncode == 0 and "pip install" in done.calls and mark.exists()


@pytest.mark.parametrize("how", ["broken link", "no python", "old", "moved", "other version", "a link", "a file"])
def test_an_environment_that_does_not_fit_is_made_anew(make, how, tmp_path):
    folder, arguments = make.folder, ()
    assert make().returncode == 0
    environment = folder / ".venv"
    (environment / "mark").touch()
    python = environment / "bin" / "python"
    if how == "broken link":
        python.unlink()
        python.symlink_to("/nowhere/python3.11")
    elif how == "no python":
        python.unlink()
    elif how == "old":
        shutil.copy(tmp_path / "bin" / "python3.9", python)
    elif how == "moved":
        folder = folder.rename(tmp_path / "elsewhere")
    elif how == "other version":
        arguments = ("PYTHON=python3.12",)
    elif how == "a link":
        shutil.copytree(environment, tmp_path / "precious")
        shutil.rmtree(environment)
        environment.symlink_to(tmp_path / "precious")
        (tmp_path / "precious" / "bin" / "python").unlink()
    elif how == "a file":
        shutil.rmtree(environment)
        environment.touch()
    done = make(*arguments, where=folder)
    assert done.returncode == 0, done.stderr
    assert "pip install" in done.calls and (folder / ".venv" / ".ready").exists()
    assert not (folder / ".venv" / "mark").exists()
    if how == "a link":
        assert (tmp_path / "precious" / "mark").exists()
    assert "pip install" not in make(*arguments, where=folder).calls
