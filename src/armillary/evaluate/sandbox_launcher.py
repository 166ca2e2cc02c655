"""The process between the examination and model-written code: builds the box, runs the code in it, and removes it.

``sandbox`` starts this file as a script in a fresh interpreter (``python -I -S``). The launcher reads the order from
standard input and keeps that open. One more byte means that the parent cancels; end of file means that it has died.
The report is written to the descriptor ``order["status"]``. Both messages are marshalled values, preceded by their
length in four bytes.

Every run pays for the imports of this file. json, contextlib, typing and signal (through re, enum and functools) would
double the start time, so none of them is used.

Three processes:

- the launcher stays outside the process namespace and enforces the wall time and the memory of the whole tree;
- the box's first process (pid 1 in its namespace) builds the file system, starts the program and reports its end. When
  it ends, the kernel ends everything in the namespace;
- the program drops every privilege and then executes Python.

The first two are not dumpable, so that the program cannot read their memory or their pipes through /proc.
"""

from __future__ import annotations

import ctypes
import errno
import marshal
import os
import resource
import select
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

CLONE_NEWNS, CLONE_NEWUSER, CLONE_NEWPID = 0x20000, 0x10000000, 0x20000000
NAMESPACES = {"pid": CLONE_NEWPID, "network": 0x40000000, "ipc": 0x8000000, "hostname": 0x4000000}
_ALL_NAMESPACES = 0x7E020000 | 0x80
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT = 1, 2, 4, 8, 32
MS_BIND, MS_REC, MS_PRIVATE = 0x1000, 0x4000, 0x40000
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_CAPBSET_DROP, PR_SET_SECCOMP = 1, 4, 24, 22
PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 36, 38
SIGKILL = 9
_LOOK_EVERY_S = 0.03

# Numbers of system calls on x86-64 and AArch64, and the error that a call returns.
_DENIED = {
    "socket": (41, 198, errno.EACCES),
    "ptrace": (101, 117, errno.EPERM),
    "process_vm_readv": (310, 270, errno.EPERM),
    "process_vm_writev": (311, 271, errno.EPERM),
    "pidfd_getfd": (438, 438, errno.EPERM),
    "unshare": (272, 97, errno.EPERM),
    "setns": (308, 268, errno.EPERM),
    "mount": (165, 40, errno.EPERM),
    "umount2": (166, 39, errno.EPERM),
    "pivot_root": (155, 41, errno.EPERM),
    "chroot": (161, 51, errno.EPERM),
    "open_tree": (428, 428, errno.EPERM),
    "move_mount": (429, 429, errno.EPERM),
    "fsopen": (430, 430, errno.EPERM),
    "fsmount": (432, 432, errno.EPERM),
    "mount_setattr": (442, 442, errno.EPERM),
    "open_by_handle_at": (304, 265, errno.EPERM),
    "bpf": (321, 280, errno.EPERM),
    "perf_event_open": (298, 241, errno.EPERM),
    "userfaultfd": (323, 282, errno.EPERM),
    "add_key": (248, 217, errno.EPERM),
    "request_key": (249, 218, errno.EPERM),
    "keyctl": (250, 219, errno.EPERM),
    "kexec_load": (246, 104, errno.EPERM),
    "init_module": (175, 105, errno.EPERM),
    "finit_module": (313, 273, errno.EPERM),
    "syslog": (103, 116, errno.EPERM),
    # io_uring can open a socket without the socket system call.
    "io_uring_setup": (425, 425, errno.ENOSYS),
    # Memory outside any process would escape the memory limit.
    "memfd_create": (319, 279, errno.EPERM),
    "memfd_secret": (447, 447, errno.EPERM),
    "shmget": (29, 194, errno.EPERM),
    "msgget": (68, 186, errno.EPERM),
    "semget": (64, 190, errno.EPERM),
    "mq_open": (240, 180, errno.EPERM),
    # Its flags are in memory, where a filter cannot read them; the C library falls back to clone.
    "clone3": (435, 435, errno.ENOSYS),
}
_SIGNALS = {
    "kill": (62, 129),
    "tkill": (200, 130),
    "tgkill": (234, 131),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "pidfd_send_signal": (424, 424),
}
# Per architecture: audit number, column of the tables above, number of clone.
_MACHINES = {"x86_64": (0xC000003E, 0, 56), "aarch64": (0xC00000B7, 1, 220)}
_NUMBERS = {"pivot_root": (155, 41), "capset": (126, 91)}

_libc = ctypes.CDLL(None, use_errno=True)


class Ignoring:
    """``contextlib.suppress``."""

    def __init__(self, *errors: type[BaseException]) -> None:
        self.errors = errors

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> bool:
        return kind is not None and issubclass(kind, self.errors)


class Layers:
    """The layers of protection that are active, and why the others are not."""

    def __init__(self, wanted: list[str]) -> None:
        self.wanted = wanted
        self.active: list[str] = []
        self.missing: dict[str, str] = {}

    def add(self, name: str, act: Callable[[], object]) -> bool:
        """Run ``act`` for the layer ``name`` if requested; an OSError becomes the reason why the layer is missing."""
        if name not in self.wanted:
            self.missing[name] = "switched off"
            return False
        try:
            act()
        except OSError as error:
            self.missing[name] = str(error)
            return False
        self.active.append(name)
        return True


def call(name: str, result: int) -> int:
    """Return ``result`` of a C function; -1 raises OSError."""
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return result


def prctl(option: int, value: int, rest: Any = 0) -> None:
    """prctl(2)."""
    call(f"prctl({option})", _libc.prctl(option, ctypes.c_ulong(value), rest, 0, 0))


def unshare(flags: int) -> None:
    """unshare(2)."""
    call(f"unshare({flags:#x})", _libc.unshare(flags))


def mount(source: str, target: str, kind: str | None, flags: int, data: str = "") -> None:
    """mount(2)."""
    given = [None if text is None else os.fsencode(text) for text in (source, target, kind)]
    call(f"mount {target}", _libc.mount(*given, ctypes.c_ulong(flags), data.encode()))


def syscall(number: int, *arguments: Any) -> int:
    """syscall(2) with integers and pointers."""
    return call(f"system call {number}", _libc.syscall(ctypes.c_long(number), *arguments))


def machine() -> tuple[int, int, int]:
    """The row of ``_MACHINES`` for this machine; OSError if there is none."""
    name = os.uname().machine
    if name not in _MACHINES or sys.maxsize < 2**32:
        raise OSError(errno.ENOSYS, f"no table of system calls for {name}")
    return _MACHINES[name]


def unused_id() -> int:
    """A user id from the top half of the ids that this user namespace maps; different in each run."""
    with open("/proc/self/uid_map") as file:
        rows = [tuple(map(int, line.split())) for line in file]
    start, _, count = max(rows, key=lambda row: row[2])
    half = count // 2
    return start + half + int.from_bytes(os.urandom(8), "little") % half if half else start


def become(user: int) -> None:
    """Set user and the only group to ``user``."""
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)


def enter_user_namespace() -> None:
    """Enter a new user namespace, where this user is 1000 and may create other namespaces."""
    user, group = os.getuid(), os.getgid()
    # After a change of user, /proc/self belongs to root until the process is dumpable again.
    prctl(PR_SET_DUMPABLE, 1)
    unshare(CLONE_NEWUSER)
    for name, text in (("setgroups", "deny"), ("uid_map", f"1000 {user} 1"), ("gid_map", f"1000 {group} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)


def enter_namespaces(layers: Layers, order: dict[str, Any]) -> int | None:
    """Create namespaces for the next child. Returns the user to become later; None if that is done or impossible."""
    if os.geteuid() == 0 and "user" in layers.wanted:
        user = unused_id()
        try:
            # This namespace changes nothing for this process; it shows whether root may create namespaces here.
            unshare(NAMESPACES["hostname"])
        except OSError:
            # Root in an unprivileged container: an ordinary user with a new user namespace gets further.
            if reachable(order["command"][0], layers):
                with Ignoring(OSError):
                    os.chown(order["folder"], user, user)
                    become(user)
        else:
            for name, flag in NAMESPACES.items():
                layers.add(name, lambda flag=flag: unshare(flag))  # type: ignore[misc]
            return user
    if layers.add("user", enter_user_namespace):
        for name, flag in NAMESPACES.items():
            layers.add(name, lambda flag=flag: unshare(flag))  # type: ignore[misc]
    return None


def build_root(order: dict[str, Any], user: int | None) -> None:
    """Build a file system: read-only views of Python and the system's libraries, and one small writable folder."""
    unshare(CLONE_NEWNS)
    mount("none", "/", None, MS_REC | MS_PRIVATE)
    root = order["root"]
    mount("tmpfs", root, "tmpfs", MS_NOSUID | MS_NODEV, "size=1m,mode=755")
    for path in order["readable"]:
        show(path, root + path)
    for device in ("null", "zero", "full", "random", "urandom"):
        with Ignoring(OSError):
            show(f"/dev/{device}", f"{root}/dev/{device}", device=True)
    os.makedirs(f"{root}/dev", exist_ok=True)
    for link, target in (("dev/fd", "/proc/self/fd"), ("tmp", "/box"), ("dev/shm", "/box")):
        if not os.path.lexists(f"{root}/{link}"):
            os.symlink(target, f"{root}/{link}")
    box = f"{root}/box"
    os.mkdir(box)
    owner = "" if user is None else f",uid={user},gid={user}"
    pages = max(1, order["disk_bytes"] // 4096)
    inodes = min(pages, 10_000) + 16
    mount("tmpfs", box, "tmpfs", MS_NOSUID | MS_NODEV, f"size={pages * 4096},nr_inodes={inodes},mode=700{owner}")
    os.makedirs(f"{root}/proc")
    for options in ("subset=pid,hidepid=2", ""):
        with Ignoring(OSError):
            mount("proc", f"{root}/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC | MS_RDONLY, options)
            break
    os.makedirs(f"{root}/old")
    os.chdir(root)
    column = machine()[1]
    syscall(_NUMBERS["pivot_root"][column], b".", b"old")
    os.chdir("/")
    call("umount", _libc.umount2(b"/old", 2))
    os.rmdir("/old")
    mount("none", "/", None, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV)


def show(source: str, target: str, device: bool = False) -> None:
    """Mount ``source`` at ``target``, read-only unless it is a device; links are copied as links."""
    os.makedirs(os.path.dirname(target), exist_ok=True)
    if os.path.islink(source):
        with Ignoring(FileExistsError):
            os.symlink(os.readlink(source), target)
        return
    if not os.path.exists(source):
        return
    if os.path.isdir(source):
        os.makedirs(target, exist_ok=True)
    else:
        with open(target, "w"):
            pass
    mount(source, target, None, MS_BIND | MS_REC)
    if device:
        return
    attributes = (ctypes.c_uint64 * 4)(MS_RDONLY | MS_NOSUID | MS_NODEV, 0, 0, 0)
    at_recursive, here = 0x8000, -100
    try:
        syscall(
            442, ctypes.c_int(here), os.fsencode(target), at_recursive, ctypes.byref(attributes), ctypes.c_size_t(32)
        )
    except OSError:
        flags = os.statvfs(target).f_flag & (MS_NOEXEC | MS_NOSUID | MS_NODEV)
        mount("none", target, None, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV | flags)


def restrict_files(readable: list[str], box: str) -> None:
    """Landlock: allow reading and executing below ``readable``, everything below ``box``, nothing elsewhere."""
    version = syscall(444, None, ctypes.c_size_t(0), 1)
    rights = {1: 13, 2: 14, 3: 15, 4: 15}.get(version, 16)
    everything = (1 << rights) - 1
    # TCP since version 4; abstract sockets and signals to outside processes since version 6.
    attributes = (ctypes.c_uint64 * 3)(everything, 3 if version >= 4 else 0, 3 if version >= 6 else 0)
    size = 8 if version < 4 else 16 if version < 6 else 24
    rules = syscall(444, ctypes.byref(attributes), ctypes.c_size_t(size), 0)
    reading, writing, a_file = 0b1101, 0b1111111111111111 & everything, 0b1100000000000111 & everything
    for path, wanted in [(path, reading) for path in readable] + [("/dev/null", 0b110), (box, writing)]:
        if not os.path.exists(path):
            continue
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
        allowed = wanted if os.path.isdir(path) else wanted & a_file
        rule = ctypes.create_string_buffer(allowed.to_bytes(8, sys.byteorder) + descriptor.to_bytes(4, sys.byteorder))
        syscall(445, rules, 1, ctypes.byref(rule), 0)
        os.close(descriptor)
    syscall(446, rules, 0)
    os.close(rules)


def filter_calls(deny_signals: bool) -> None:
    """seccomp: the calls of ``_DENIED`` return an error, and so do new namespaces through clone."""
    audit, column, clone = machine()
    load, equal, at_least, any_bit, give = 0x20, 0x15, 0x35, 0x45, 0x06
    allow, kill, error = 0x7FFF0000, 0x80000000, 0x00050000
    program = [(load, 0, 0, 4), (equal, 1, 0, audit), (give, 0, 0, kill), (load, 0, 0, 0)]
    # x86-64 has a second call table (x32) with the same calls under other numbers.
    program += [(at_least, 0, 1, 0x40000000), (give, 0, 0, error | errno.EPERM)]
    denied = [(numbers[column], numbers[2]) for numbers in _DENIED.values()]
    if deny_signals:
        denied += [(numbers[column], errno.EPERM) for numbers in _SIGNALS.values()]
    for number, answer in denied:
        program += [(equal, 0, 1, number), (give, 0, 0, error | answer)]
    program += [(equal, 0, 3, clone), (load, 0, 0, 16), (any_bit, 0, 1, _ALL_NAMESPACES)]
    program += [(give, 0, 0, error | errno.EPERM), (give, 0, 0, allow)]
    code = b"".join(
        op.to_bytes(2, sys.byteorder) + bytes([yes, no]) + value.to_bytes(4, sys.byteorder)
        for op, yes, no, value in program
    )
    text = ctypes.create_string_buffer(code, len(code))

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))

    prctl(PR_SET_SECCOMP, 2, ctypes.byref(Program(len(program), ctypes.addressof(text))))


def drop_capabilities() -> None:
    """Drop all capabilities, including those that a setuid program would regain."""
    for capability in range(64):
        with Ignoring(OSError):
            prctl(PR_CAPBSET_DROP, capability)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    syscall(_NUMBERS["capset"][machine()[1]], ctypes.byref(header), ctypes.byref((ctypes.c_uint32 * 6)()))


def set_limits(order: dict[str, Any]) -> None:
    """The kernel's limits per process. The soft CPU limit is lower, so that reaching it differs from a kill."""
    cpu = max(1, round(order["cpu_s"]))
    for name, soft, hard in (
        (resource.RLIMIT_CPU, cpu, cpu + 1),
        (resource.RLIMIT_AS, order["memory_bytes"], order["memory_bytes"]),
        (resource.RLIMIT_FSIZE, order["file_bytes"], order["file_bytes"]),
        (resource.RLIMIT_NPROC, order["processes"], order["processes"]),
        (resource.RLIMIT_NOFILE, 256, 256),
        (resource.RLIMIT_CORE, 0, 0),
        (resource.RLIMIT_MEMLOCK, 0, 0),
        (resource.RLIMIT_STACK, min(64 << 20, order["memory_bytes"]), min(64 << 20, order["memory_bytes"])),
    ):
        highest = resource.getrlimit(name)[1]
        most = sys.maxsize if highest == resource.RLIM_INFINITY else highest
        resource.setrlimit(name, (min(soft, most), min(hard, most)))


def program(order: dict[str, Any], layers: Layers, user: int | None, status: int) -> NoReturn:
    """Drop every privilege and execute Python; never returns."""
    try:
        os.setsid()
        box = "/box" if "files" in layers.active else order["folder"]
        if user is not None:
            layers.add("user", lambda: become(user))
        os.umask(0o077)
        os.chdir(box)
        with Ignoring(OSError):
            drop_capabilities()
        layers.add("no-new-privileges", lambda: prctl(PR_SET_NO_NEW_PRIVS, 1))
        readable = ["/"] if "files" in layers.active else order["readable"]
        layers.add("landlock", lambda: restrict_files(readable, box))
        layers.add("limits", lambda: set_limits(order))
        apart = "pid" in layers.active or ("user" in layers.active and user is not None)
        layers.add("system-calls", lambda: filter_calls(deny_signals=not apart))
        weak = [one for one in order["minimum"] if not set(one) & set(layers.active)]
        refused = bool(weak) and not order["allow_weak"]
        tell(status, {"layers": layers.active, "missing": layers.missing, "weak": weak, "refused": refused})
        if refused:
            os._exit(126)
        environment = {name: text.replace("{box}", box) for name, text in order["environment"].items()}
        if order["proof"] is not None:
            os.set_inheritable(order["proof"], True)
        os.execve(order["command"][0], [part.replace("{box}", box) for part in order["command"]], environment)
    except BaseException as error:
        tell(status, {"error": f"{type(error).__name__}: {error}"})
    os._exit(126)


def tell(status: int, message: dict[str, Any]) -> None:
    """Send a message to the parent; errors are ignored if the parent has died."""
    text = marshal.dumps(message)
    with Ignoring(OSError):
        os.write(status, len(text).to_bytes(4, "little") + text)


def first_process(order: dict[str, Any], layers: Layers, user: int | None, status: int) -> NoReturn:
    """Build the box, start the program, wait for it, and report how it ended; never returns."""
    try:
        prctl(PR_SET_PDEATHSIG, SIGKILL)
        layers.add("files", lambda: build_root(order, user))
        if user is not None and not reachable(order["command"][0], layers):
            user = None
        box = "/box" if "files" in layers.active else order["folder"]
        write_files(order, box, user)
        stdin = os.open(os.path.join(box, ".stdin"), os.O_RDONLY)
        os.unlink(os.path.join(box, ".stdin"))
        os.dup2(stdin, 0)
        child = os.fork()
        if child == 0:
            program(order, layers, user, status)
        prctl(PR_SET_DUMPABLE, 0)
        os.closerange(0, 3)
        while True:
            ended, code, used = os.wait4(-1, 0)
            if ended == child:
                break
        tell(status, {"exit": os.waitstatus_to_exitcode(code), "cpu_s": used.ru_utime + used.ru_stime})
    except BaseException as error:
        tell(status, {"error": f"{type(error).__name__}: {error}"})
    os._exit(0)


def reachable(path: str, layers: Layers) -> bool:
    """Whether a user that owns nothing can execute ``path``; inside a separate file system it always can."""
    for start in (path, os.path.realpath(path)):
        part = start
        while "files" not in layers.active and part != "/":
            if not os.stat(part).st_mode & 0o001:
                layers.missing["user"] = f"Python is in {part}, which only its owner may enter"
                return False
            part = os.path.dirname(part)
    return True


def write_files(order: dict[str, Any], box: str, user: int | None) -> None:
    """Write the program, its files and its standard input into the writable folder."""
    for name, text in order["files"].items():
        path = os.path.join(box, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(text.encode("utf-8", "surrogatepass"))
    if user is not None and os.geteuid() == 0:
        for folder, _, names in os.walk(box):
            for name in [folder, *(os.path.join(folder, name) for name in names)]:
                os.chown(name, user, user)


def tree(root: int) -> tuple[list[int], int]:
    """The processes below ``root`` and the number of all their threads; empty if this kernel does not list children."""
    found: list[int] = []
    look, threads = [root], 0
    while look:
        process = look.pop()
        try:
            for thread in os.listdir(f"/proc/{process}/task"):
                threads += 1
                with open(f"/proc/{process}/task/{thread}/children") as file:
                    children = [int(text) for text in file.read().split()]
                found += children
                look += children
        except OSError:
            continue
    return found, threads


def memory_of(processes: list[int], limit: int) -> int:
    """Bytes of memory held by ``processes``. Shared pages are split among them once the plain sum exceeds ``limit``."""
    page = os.sysconf("SC_PAGE_SIZE")
    total = 0
    for process in processes:
        with Ignoring(OSError, IndexError), open(f"/proc/{process}/statm") as file:
            total += int(file.read().split()[1]) * page
    if total <= limit:
        return total
    shared_out = 0
    for process in processes:
        with Ignoring(OSError), open(f"/proc/{process}/smaps_rollup") as file:
            shared_out += sum(int(line.split()[1]) * 1024 for line in file if line.startswith("Pss:"))
    return shared_out


def watch(child: int, order: dict[str, Any]) -> str | None:
    """Wait for ``child``. Returns the limit that it exceeded, if any, or ``ended`` if the parent cancelled."""
    handle = os.pidfd_open(child)
    started = time.monotonic()
    wait_s = 0.002
    while True:
        left = order["wall_s"] - (time.monotonic() - started)
        if left <= 0:
            return "wall_time"
        ready = select.select([handle, order["stdin"]], [], [], min(left, wait_s))[0]
        if handle in ready:
            return None
        if ready:
            return "ended"
        # Short programs are not checked, long ones every 30 ms.
        wait_s = _LOOK_EVERY_S
        processes, threads = tree(child)
        # The kernel does not limit root's processes. The box's first process is not part of the program.
        if threads > order["processes"] + 1:
            return "processes"
        if memory_of(processes, order["memory_bytes"]) > order["memory_bytes"]:
            return "memory"


def end_everything(child: int) -> None:
    """Kill ``child`` and everything its tree left behind, until this process has no children."""
    with Ignoring(ProcessLookupError):
        os.kill(child, SIGKILL)
    while True:
        for process in tree(os.getpid())[0]:
            with Ignoring(OSError):
                os.kill(process, SIGKILL)
        try:
            os.wait()
        except ChildProcessError:
            return


def read_exactly(count: int) -> bytes:
    """``count`` bytes of standard input; raises EOFError if it ends early."""
    text = b""
    while len(text) < count:
        more = os.read(0, count - len(text))
        if not more:
            raise EOFError("the order ends before its length")
        text += more
    return text


def main() -> None:
    """Read the order, run it, report."""
    order = marshal.loads(read_exactly(int.from_bytes(read_exactly(4), "little")))
    status: int = order["status"]
    os.set_inheritable(status, False)
    layers = Layers(order["layers"])
    try:
        prctl(PR_SET_CHILD_SUBREAPER, 1)
        user = enter_namespaces(layers, order)
        child = os.fork()
        if child == 0:
            first_process(order, layers, user, status)
        prctl(PR_SET_DUMPABLE, 0)
        # Only the program holds its output pipes, so the parent sees them close when the program exits.
        order["stdin"] = os.dup(0)
        os.closerange(0, 3)
        if order["proof"] is not None:
            os.close(order["proof"])
        limit = watch(child, order)
        end_everything(child)
        tell(status, {"limit": limit})
    except BaseException as error:
        tell(status, {"error": f"{type(error).__name__}: {error}"})


if __name__ == "__main__":
    main()
