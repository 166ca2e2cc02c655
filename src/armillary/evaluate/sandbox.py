"""A sandbox for model-written Python: no network, limited resources, and no access to the rest of the machine.

Covered if all layers are active (``sandbox_strength`` reports which are):

- files: the program sees Python, the system's libraries, and one empty writable folder of limited size in memory.
  It cannot see home folders, other data or other processes (mount and process namespace, pivot_root, Landlock);
- network: no socket of any family can be opened (own network namespace, seccomp);
- user: an id that owns nothing, or the only id of a user namespace; no capabilities; setuid has no effect;
- resources: memory per process and in total, CPU time per process, wall time, number of processes, size of a file, of
  all files, and of the output (rlimits and a supervising process outside);
- termination: every process that the program started ends with it, even if it left the process group or ignores
  signals;
- environment: none of the caller's variables.

Not covered:

- kernel bugs. Code from a determined attacker belongs in a virtual machine;
- a program that forges the result of the checks on it. Program and checks share one interpreter, so a program that
  searches the frames below it can write the proof that ``run_checked`` expects. An early exit, printed success, exit
  code 0, and source code that would swallow the checks (an open string or bracket) do not pass;
- timing and cache side channels; CPU load below the limits;
- Python's own folders: a program can read site-packages.

The sandbox works as root in a container and as an ordinary user, from many threads and processes at once. If namespaces
are forbidden (an unprivileged container), Landlock and seccomp take their place. Below the minimum in ``MINIMUM``,
``run_python`` refuses unless the policy allows it. Linux only.
"""

from __future__ import annotations

import contextlib
import functools
import marshal
import os
import secrets
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from armillary.recipe import ArmillaryError, UsageError

LAYERS = (
    "user",
    "pid",
    "network",
    "ipc",
    "hostname",
    "files",
    "no-new-privileges",
    "landlock",
    "limits",
    "system-calls",
)
# At least one layer of each row must be active. The rows protect files, the network, privileges, resources, and outside
# processes.
MINIMUM = (
    ("files", "landlock"),
    ("network", "system-calls"),
    ("no-new-privileges",),
    ("limits",),
    ("pid", "system-calls"),
)
_LAUNCHER = Path(__file__).with_name("sandbox_launcher.py")
# Runs a program and then its check, compiled apart, in the names of one module. It removes itself first, and keeps what
# it needs in local variables, so that the program can neither read the proof in a file nor replace a function.
_CHECKER = """\
def run():
    import os, sys
    execute, write, names = exec, os.write, globals()
    names.pop("run")
    os.unlink(__file__)
    sys.argv[0] = names["__file__"] = os.path.join(os.path.dirname(__file__), "main.py")
    with open(__file__, "rb") as file:
        program = file.read()
    check = compile({check!r}, "check", "exec", dont_inherit=True)
    execute(compile(program, __file__, "exec", dont_inherit=True), names)
    execute(check, names)
    write({proof}, {word!r})
run()
"""
# Time to build and remove the box, in addition to the program's wall time.
_GRACE_S = 20.0


class SandboxError(ArmillaryError):
    """The sandbox could not be built, or is weaker than the minimum on this machine."""


@dataclass(frozen=True)
class Limits:
    """Resource limits of a program.

    Attributes:
        wall_s: seconds of wall time, for all its processes.
        cpu_s: seconds of CPU time per process, rounded to whole seconds, at least 1.
        memory_bytes: address space per process, and memory held by all of them.
        processes: processes and threads at once.
        file_bytes: size of one file.
        disk_bytes: size of all files together (needs the layer ``files``).
        output_bytes: size of standard output and, separately, of standard error; a program that writes more is killed.
    """

    wall_s: float = 10.0
    cpu_s: float = 10.0
    memory_bytes: int = 1 << 30
    processes: int = 32
    file_bytes: int = 16 << 20
    disk_bytes: int = 64 << 20
    output_bytes: int = 1 << 20

    def __post_init__(self) -> None:
        least = {"memory_bytes": 64 << 20, "processes": 1, "file_bytes": 4096, "disk_bytes": 65536, "output_bytes": 1}
        for name, value in vars(self).items():
            if not least.get(name, 0.01) <= value < 2**62:
                raise UsageError(f"limit {name} is {value!r}; give at least {least.get(name, 0.01):g}")


@dataclass(frozen=True)
class Policy:
    """How the sandbox is built: the layers to try, and whether to run below the minimum."""

    layers: tuple[str, ...] = LAYERS
    allow_weak: bool = False


@dataclass(frozen=True)
class Outcome:
    """The outcome of a program.

    Attributes:
        stdout: standard output, cut at ``output_bytes``; bytes that are not UTF-8 are replaced.
        stderr: standard error, likewise.
        exit: exit code; None if a signal ended the program.
        signal: the signal that ended it, or None.
        limit: the limit that ended it: ``wall_time``, ``cpu_time``, ``memory``, ``processes`` or ``output``; None if it
            ended without being killed. An uncaught allocation beyond the limit counts as ``memory``.
        wall_s: seconds of wall time, including the start of the box.
        cpu_s: CPU time of the program and of the children it waited for; 0 if it was killed from outside.
        layers: the layers that were active.
    """

    stdout: str
    stderr: str
    exit: int | None
    signal: int | None
    limit: str | None
    wall_s: float
    cpu_s: float
    layers: tuple[str, ...]


@dataclass(frozen=True)
class Strength:
    """The protection available on this machine.

    Attributes:
        active: the layers that work for this user.
        missing: the other layers, with the reason.
        enough: whether the minimum is met.
    """

    active: tuple[str, ...]
    missing: dict[str, str]
    enough: bool


@dataclass(frozen=True)
class _Job:
    """A program and how to run it; ``word`` is written to the proof pipe if ``check``, run after it, ends."""

    code: str
    limits: Limits
    policy: Policy
    stdin: str = ""
    files: Mapping[str, str] = field(default_factory=dict)
    check: str | None = None
    word: str = ""


@dataclass
class _Report:
    """The launcher's messages, merged."""

    values: dict[str, Any] = field(default_factory=dict)

    def read(self, text: bytes) -> None:
        """Messages of the launcher: marshalled values, each preceded by its length in four bytes."""
        while len(text) >= 4:
            end = 4 + int.from_bytes(text[:4], "little")
            self.values.update(marshal.loads(text[4:end]))
            text = text[end:]


def run_python(
    code: str,
    limits: Limits = Limits(),
    stdin: str = "",
    files: Mapping[str, str] | None = None,
    policy: Policy = Policy(),
) -> Outcome:
    """Run ``code`` as a separate Python program.

    Args:
        code: the program; it runs as ``main.py`` in the writable folder, its working directory.
        limits: resource limits.
        stdin: standard input.
        files: text files to write into that folder, by relative name.
        policy: which layers to try, and whether to run below the minimum.

    Raises:
        UsageError: a file name that leaves the folder, an unknown layer.
        SandboxError: the box could not be built, or is weaker than ``MINIMUM``.
    """
    outcome, _ = _run(_Job(code, limits, policy, stdin, files or {}), _Report())
    return outcome


def run_checked(code: str, check: str, limits: Limits = Limits(), policy: Policy = Policy()) -> tuple[bool, Outcome]:
    """Run ``code``, then ``check`` with its names; True if ``check`` ran to its end and the program exited with 0.

    The two are compiled apart, so that a string, bracket or decorator left open at the end of ``code`` is an error of
    ``code``. As proof, a random word is written to a separate pipe after ``check``. Output, an early exit and exit code
    0 prove nothing.

    Raises:
        SandboxError: see ``run_python``.
    """
    word = secrets.token_hex(16)
    outcome, proof = _run(_Job(code, limits, policy, check=check, word=word), _Report())
    return outcome.exit == 0 and outcome.limit is None and proof == word.encode(), outcome


@functools.cache
def sandbox_strength() -> Strength:
    """The layers that are active on this machine for this user, found by running an empty program once.

    Raises:
        SandboxError: no program can be run at all.
    """
    report = _Report()
    _run(_Job("", Limits(), Policy(allow_weak=True)), report)
    values = report.values
    return Strength(tuple(values["layers"]), values["missing"], not values["weak"])


def _run(job: _Job, report: _Report) -> tuple[Outcome, bytes]:
    """The outcome of a job and the proof it wrote; ``report`` is updated with the launcher's messages."""
    _check(job.files, job.policy)
    started = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="armillary-box-"))
    try:
        (folder / "root").mkdir()
        (folder / "box").mkdir(mode=0o700)
        folder.chmod(0o711)
        output = _launch(folder, job, report)
    except OSError as error:
        raise SandboxError(f"the sandbox could not be started in {folder}: {error}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return _outcome(report.values, job.limits, output, time.monotonic() - started), output["proof"]


def _check(files: Mapping[str, str], policy: Policy) -> None:
    for name in files:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or not path.parts or "\0" in name:
            raise UsageError(
                f"file name {name!r} points outside the sandbox's folder; give a relative name without '..'"
            )
        if path.parts[0] in ("main.py", ".check.py", ".stdin"):
            raise UsageError(f"file name {name!r} is reserved by the sandbox; give another")
    unknown = set(policy.layers) - set(LAYERS)
    if unknown:
        raise UsageError(f"unknown layer {', '.join(sorted(unknown))}; known are {', '.join(LAYERS)}")
    if not sys.platform.startswith("linux"):
        raise SandboxError(f"the sandbox needs Linux, and this is {sys.platform}; run code examinations on Linux")


def _launch(folder: Path, job: _Job, report: _Report) -> dict[str, bytes]:
    """Start the launcher, send the order, and collect the output of each channel."""
    status_read, status_write = os.pipe()
    proof_read, proof_write = os.pipe()
    passed, programs = [status_write], {"main.py": job.code}
    if job.check is not None:
        passed.append(proof_write)
        programs[".check.py"] = _CHECKER.format(check=job.check, proof=proof_write, word=job.word.encode())
    order = {
        **vars(job.limits),
        "status": status_write,
        "proof": None if job.check is None else proof_write,
        "layers": list(job.policy.layers),
        "minimum": MINIMUM,
        "allow_weak": job.policy.allow_weak,
        "folder": str(folder / "box"),
        "root": str(folder / "root"),
        "readable": _readable(),
        "files": {**job.files, **programs, ".stdin": job.stdin},
        "command": [sys.executable, "-E", "-s", "-B", f"{{box}}/{list(programs)[-1]}"],
        "environment": {
            "PATH": "/usr/bin:/bin",
            "HOME": "{box}",
            "TMPDIR": "{box}",
            "LANG": "C.UTF-8",
            "PYTHONHASHSEED": "0",
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
        },
    }
    try:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(_LAUNCHER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=passed,
            env={},
            cwd="/",
            start_new_session=True,
        )
    except BaseException:
        os.close(status_read)
        os.close(proof_read)
        raise
    finally:
        os.close(status_write)
        os.close(proof_write)
    try:
        with contextlib.suppress(BrokenPipeError):
            assert process.stdin is not None
            text = marshal.dumps(order)
            process.stdin.write(len(text).to_bytes(4, "little") + text)
            process.stdin.flush()
        return _collect(process, {"status": status_read, "proof": proof_read}, job.limits, report)
    finally:
        _end(process)
        os.close(status_read)
        os.close(proof_read)


def _collect(
    process: subprocess.Popen[bytes], pipes: dict[str, int], limits: Limits, report: _Report
) -> dict[str, bytes]:
    """Read all channels until the launcher exits; a channel over its limit ends the program."""
    assert process.stdout is not None and process.stderr is not None
    channels = {**pipes, "stdout": process.stdout.fileno(), "stderr": process.stderr.fileno()}
    outputs: dict[str, bytearray] = {name: bytearray() for name in channels}
    most = {"stdout": limits.output_bytes, "stderr": limits.output_bytes, "status": 1 << 20, "proof": 64}
    deadline = time.monotonic() + limits.wall_s + _GRACE_S
    with selectors.DefaultSelector() as selector:
        for name, descriptor in channels.items():
            selector.register(descriptor, selectors.EVENT_READ, name)
        # The launcher's end of the status pipe closes last.
        while "status" in {key.data for key in selector.get_map().values()}:
            left = deadline - time.monotonic()
            if left <= 0:
                report.values["limit"] = "wall_time"
                break
            for key, _ in selector.select(left):
                chunk = os.read(key.fd, 65536)
                if not chunk:
                    selector.unregister(key.fd)
                    continue
                room = most[key.data] - len(outputs[key.data])
                outputs[key.data] += chunk[:room]
                if len(chunk) > room and "cut" not in report.values:
                    report.values["cut"] = True
                    _wish_the_end(process)
        _drain(selector, outputs, most)
    report.read(bytes(outputs["status"]))
    return {name: bytes(data) for name, data in outputs.items()}


def _drain(selector: selectors.BaseSelector, outputs: dict[str, bytearray], most: dict[str, int]) -> None:
    """Read the rest of the pipes without blocking: a surviving process could hold them open."""
    for key in list(selector.get_map().values()):
        os.set_blocking(key.fd, False)
        with contextlib.suppress(BlockingIOError):
            while chunk := os.read(key.fd, 65536):
                room = most[key.data] - len(outputs[key.data])
                outputs[key.data] += chunk[:room]
                if room <= 0:
                    break


def _end(process: subprocess.Popen[bytes]) -> None:
    """Make sure that the launcher has exited; the kernel then ends the box."""
    _wish_the_end(process)
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for pipe in (process.stdin, process.stdout, process.stderr):
        assert pipe is not None
        with contextlib.suppress(BrokenPipeError):
            pipe.close()


def _wish_the_end(process: subprocess.Popen[bytes]) -> None:
    """Ask the launcher to end the box, which it does on reading one more byte."""
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(b"e")
        process.stdin.flush()


def _outcome(values: dict[str, Any], limits: Limits, output: dict[str, bytes], wall_s: float) -> Outcome:
    if values.get("refused"):
        rows = "; ".join(" or ".join(row) for row in values["weak"])
        reasons = ", ".join(f"{name} ({why})" for name, why in values["missing"].items())
        raise SandboxError(
            f"the sandbox is too weak here: it lacks {rows}. Missing layers: {reasons}. Run as root or where user "
            "namespaces are allowed, or pass Policy(allow_weak=True) for code that you trust"
        )
    if "error" in values:
        raise SandboxError(f"the sandbox could not be built: {values['error']}")
    if "layers" not in values:
        raise SandboxError(
            f"the sandbox's launcher exited without a report: {output['stderr'].decode(errors='replace')}"
        )
    code = values.get("exit")
    stderr = output["stderr"].decode(errors="replace")
    limit = values.get("limit")
    if values.get("cut"):
        limit, code = "output", None
    elif code in (-signal.SIGXCPU, -signal.SIGKILL) and values["cpu_s"] >= max(1, round(limits.cpu_s)) - 0.1:
        limit = "cpu_time"
    elif code == 1 and stderr.rstrip().rpartition("\n")[2].startswith("MemoryError"):
        limit = "memory"
    ended_by = None if code is None or code >= 0 else -code
    return Outcome(
        stdout=output["stdout"].decode(errors="replace"),
        stderr=stderr,
        exit=code if code is not None and code >= 0 else None,
        signal=ended_by,
        limit=limit,
        wall_s=wall_s,
        cpu_s=values.get("cpu_s", 0.0),
        layers=tuple(values["layers"]),
    )


@functools.cache
def _readable() -> list[str]:
    """The folders that Python and its libraries need: the paths themselves and the targets of their links."""
    wanted = ["/usr", "/lib", "/lib64", "/bin", "/etc/ld.so.cache", "/etc/alternatives", "/etc/localtime"]
    wanted += [sys.prefix, sys.base_prefix, sys.exec_prefix, str(Path(sys.executable).resolve().parent)]
    found: list[str] = []
    for path in wanted:
        for name in (path, os.path.realpath(path)):
            # Skip paths below a folder already listed; a link needs its own entry.
            inside = any(
                name == other or name.startswith(other + "/") for other in found if not Path(other).is_symlink()
            )
            if os.path.lexists(name) and not inside and name != "/":
                found.append(name)
    return found
