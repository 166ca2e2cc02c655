"""The error handler of the command line: any error in a verb becomes one clear message and an exit code.

Rooms raise expected problems as ``ArmillaryError`` with their own message. Other exceptions are either problems of the
environment or bugs. The former (a full disk, a locked database, a torn file, too little memory) are reported with the
file if known; the traceback of a bug goes to a file. ``ARMILLARY_DEBUG=1`` prints every traceback.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote

DEBUG = "ARMILLARY_DEBUG"

_INTERRUPTED = 130  # exit code of the command-line parser on Ctrl-C
_KEPT = "finished work is kept, and the same command resumes"
_REMEDIES = {
    errno.ENOSPC: "free space there",
    errno.EDQUOT: "free space within the quota",
    errno.EROFS: "name a writable folder with --out",
    errno.EACCES: "grant this user access, or name another folder with --out",
    errno.EPERM: "grant this user access, or name another folder with --out",
    errno.EMFILE: "allow more open files (ulimit -n), or use fewer --workers",
    errno.EIO: "check the disk",
    errno.EEXIST: "something else exists there; move it away, or name another place",
    errno.ENOTDIR: "a folder is needed there; name another place",
    errno.EISDIR: "a file is needed there; move the folder away, or name another place",
    errno.ELOOP: "the link points to itself; name another place",
    errno.ENAMETOOLONG: "use shorter names",
}
_LOOP = "Symlink loop from "
# Exceptions of file readers on foreign bytes.
_UNREADABLE = {"JSONDecodeError", "SafetensorError", "UnpicklingError", "ValidationError", "BadZipFile", "ZstdError"}


def guarded(act: Callable[[], Any]) -> int:
    """The exit code of ``act``: 0 success, 1 the work failed, 2 wrong usage."""
    try:
        act()
        sys.stdout.flush()
    except SystemExit as error:
        if error.code != _INTERRUPTED:
            return error.code if isinstance(error.code, int) else 0 if error.code is None else 1
        return _stopped()
    except KeyboardInterrupt:
        return _stopped()
    except BaseException as error:
        return _failed(error)
    return 0


def masked(text: str) -> str:
    """``text`` without the passwords of URLs, connection strings, and the given database."""
    from armillary.recipe import (  # here, so that this module loads in a moment: see `main`
        passwords_in,
        without_passwords,
    )

    text = without_passwords(text)
    for given in (os.environ.get("ARMILLARY_DATABASE", ""), *sys.argv):
        for password in passwords_in(given):
            for form in (password, unquote(password)):
                if len(form) >= 4:  # removing a shorter one would break words
                    text = text.replace(form, "***")
    return text


def _stopped() -> int:
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a second Ctrl-C ends the process at once
    _print("stopped; the same command resumes")
    return 1


def _failed(error: BaseException) -> int:
    if os.environ.get(DEBUG):
        print(masked("".join(traceback.format_exception(error))), file=sys.stderr)
    from armillary.recipe import ArmillaryError  # here, so that this module loads in a moment: see `main`

    if "ARMILLARY_CRASH" in os.environ:  # this is the work of a job
        from armillary.launch import record_crash

        record_crash(error)
    if isinstance(error, ArmillaryError):
        _print(str(error), "error")
        return error.exit_code
    if isinstance(error, BrokenPipeError) and _output_is_closed():
        return 1  # the program that reads the output has ended, such as `head`, so a message would be lost
    _print(_in_words(error) or _fault(error), "error")
    return 1


def _in_words(error: BaseException) -> str | None:
    """The problem of the environment and its remedy; None for a bug."""
    from_package = {base.__module__.split(".")[0] for base in type(error).__mro__}
    message = " ".join(str(getattr(error, "orig", None) or error).split()) or type(error).__name__
    where = f"{file}: " if (file := _file_of(error)) is not None else ""
    if "sqlalchemy" in from_package or "sqlite3" in from_package:
        remedy = "; another process has locked it: end that process, or wait" if "locked" in message else ""
        return f"{where}the database cannot be used ({message}){remedy}; {_KEPT}"
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return f"out of memory ({message}); use fewer --workers, or smaller batches or models; {_KEPT}"
    if isinstance(error, OSError) and "pyarrow" not in from_package:
        # A rename has two names; the second is the file that is meant, the first a temporary one beside it.
        place = error.filename2 or error.filename
        name = f"{place}: " if place else where
        do = _REMEDIES.get(error.errno or 0)
        return f"{name}{error.strerror or message}{f'; {do}' if do else ''}; {_KEPT}"
    if "pyarrow" in from_package or type(error).__name__ in _UNREADABLE:
        remedy = "restore it; if Armillary wrote it, remove it and run the same command again"
        return f"{where}the file is damaged, or is a different kind of file ({message}); {remedy}"
    if isinstance(error, UnicodeError):
        return f"{where}the text is not UTF-8 ({message}); save it as UTF-8"
    if isinstance(error, EOFError) or type(error).__name__ in ("BrokenProcessPool", "PicklingError"):
        return f"a child process died ({message}); it may have run out of memory; {_KEPT}"
    if isinstance(error, RuntimeError) and message.startswith(_LOOP):  # pathlib raises this before Python 3.13
        return f"{message.removeprefix(_LOOP)}: the link points to itself; give another path"
    if isinstance(error, ImportError):
        return f"{message}; install Armillary with the extra that provides it (demo, export, ray, postgres)"
    return None


def _fault(error: BaseException) -> str:
    """Write the traceback to a file, and return a message on how to report it."""
    kind = f"{type(error).__name__}: {' '.join(str(error).split())}"
    try:
        descriptor, name = tempfile.mkstemp(prefix="armillary-error-", suffix=".txt")
        with open(descriptor, "w", encoding="utf-8", errors="backslashreplace") as file:
            command = " ".join(sys.argv)
            file.write(masked(f"{command}\n\n{''.join(traceback.format_exception(error))}"))
    except OSError:
        return f"this is a bug in Armillary ({kind}); {DEBUG}=1 shows the traceback; please report it; {_KEPT}"
    return f"this is a bug in Armillary ({kind}); please report it with {name}; {DEBUG}=1 shows the traceback; {_KEPT}"


def _file_of(error: BaseException) -> Path | None:
    """The file that the code was processing: the innermost variable that names one."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    for frame in reversed(frames):
        own = frame.f_locals.get("self")
        for known in (frame.f_locals, getattr(own, "__dict__", {})):
            for name in ("path", "file", "folder"):
                value = known.get(name)
                if isinstance(value, Path):
                    return value
    return None


def _output_is_closed() -> bool:
    """Whether standard output is closed; it is then redirected to the null device, so that flushing works."""
    try:
        output = sys.stdout.fileno()
    except (OSError, ValueError):  # not a file
        return False
    poll = select.poll()
    poll.register(output, select.POLLOUT)
    if not any(event & (select.POLLERR | select.POLLNVAL) for _, event in poll.poll(0)):
        return False
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, output)
    os.close(null)
    return True


def _print(text: str, kind: str = "") -> None:
    from rich.markup import escape

    from armillary.cli.show.screen import err

    plain = masked(text).encode("utf-8", "backslashreplace").decode("utf-8")
    err.print(f"[red]{kind}[/red] {escape(plain)}" if kind else escape(plain), highlight=False)
