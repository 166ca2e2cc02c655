"""A lock keeps others out with the name of its holder, and ends with it, however it ends."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from armillary.recipe import ArmillaryError, BusyError, exclusive

WHAT = "works in this workspace"
_PATIENCE_S = 60

HOLD = """
import os, signal, sys, time
from pathlib import Path
from armillary.recipe import exclusive
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell lets jobs in the background ignore it
with exclusive(Path(sys.argv[1]), "works in this workspace"):
    if sys.argv[2:] == ["fork"]:
        if os.fork() == 0:
            print(os.getpid(), flush=True)
            time.sleep(600)
    else:
        print(0, flush=True)
    time.sleep(600)
"""


@pytest.fixture
def path(tmp_path):
    return tmp_path / "out" / ".lock"


@pytest.fixture
def hold(path):
    """Hold the lock in another process; returns that and the child that it forked, if asked to."""
    begun, children = [], []

    def act(*options):
        process = subprocess.Popen([sys.executable, "-c", HOLD, str(path), *options], stdout=subprocess.PIPE)
        begun.append(process)
        child = int(process.stdout.readline())
        children.extend([child] if child else [])
        return process, child

    yield act
    for child in children:
        os.kill(child, signal.SIGKILL)
    for process in begun:
        process.kill()
        process.communicate()


def taken(path):
    """Whether the lock can be had now."""
    try:
        with exclusive(path, WHAT):
            return False
    except BusyError:
        return True


def test_a_second_process_is_refused_with_the_name_of_the_first(path, hold):
    first, _ = hold()
    with pytest.raises(BusyError) as said, exclusive(path, WHAT):
        pass
    expected = f"{path.parent}: process {first.pid} on {socket.gethostname()} (-c {path}, since 20"
    assert str(said.value).startswith(expected)
    assert str(said.value).endswith("works in this workspace; wait for it to end, or stop it")
    assert said.value.exit_code == 1


@pytest.mark.parametrize("options", [(), ("fork",)], ids=["alone", "with a forked child that lives on"])
def test_a_holder_that_is_killed_blocks_nobody(path, hold, options):
    first, child = hold(*options)
    first.kill()
    first.wait()
    assert not taken(path)
    if child:
        os.kill(child, 0)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"\xff\0", b'{"pid": "x"}', b"[" * 60000, b"another program's file"]
)
def test_what_the_file_says_neither_blocks_nor_frees(path, content):
    path.parent.mkdir()
    path.write_bytes(content)
    assert not taken(path)
    with open(path, "rb+") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        other.truncate()
        other.write(content)
        other.flush()
        with pytest.raises(BusyError, match=f"{path.parent}: another process works in"), exclusive(path, WHAT):
            pass


def test_the_name_of_a_dead_holder_is_not_given(path, hold):
    first, _ = hold()
    first.kill()
    first.wait()
    with open(path, "rb+") as other:  # has the lock, and is about to write its name
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(BusyError, match="another process works in"), exclusive(path, WHAT):
            pass


def test_one_thread_may_take_it_again_and_another_not(path):
    found = []
    with exclusive(path, WHAT):
        with exclusive(path.parent / "." / path.name, WHAT):
            pass
        assert not found
        thread = threading.Thread(target=lambda: found.append(taken(path)))
        thread.start()
        thread.join()
    assert found == [True]
    with pytest.raises(KeyError), exclusive(path, WHAT):
        raise KeyError
    assert not taken(path)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks_is_said_to_be_one(path, monkeypatch, number):
    def flock(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(ArmillaryError, match=r"does not support locks .*local disk") as said, exclusive(path, WHAT):
        pass
    assert not isinstance(said.value, BusyError) and str(path) in str(said.value)


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    below = tmp_path / "file" / ".lock"
    with pytest.raises(ArmillaryError, match=r"file.*; Armillary writes to this folder"), exclusive(below, WHAT):
        pass
    (tmp_path / ".lock").mkdir()
    with pytest.raises(ArmillaryError, match=r"\.lock: Is a directory"), exclusive(tmp_path / ".lock", WHAT):
        pass


def test_a_full_disk_takes_the_name_and_not_the_lock(path, monkeypatch):
    def pwrite(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", pwrite)
    with exclusive(path, WHAT), open(path, "rb+") as other, pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_the_lock_is_free_when_its_holder_ends_in_order(path, hold):
    first, _ = hold()
    first.send_signal(signal.SIGINT)
    end = time.monotonic() + _PATIENCE_S
    while taken(path):
        assert time.monotonic() < end
    assert Path(path).read_bytes() == b""
