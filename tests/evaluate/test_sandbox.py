"""Attacks on the sandbox, each a real one: what model-written code tries must fail, and the outcome must say how."""

import concurrent.futures
import importlib.util
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from armillary.evaluate import sandbox
from armillary.evaluate.sandbox import LAYERS, Limits, Policy, SandboxError, run_checked, run_python, sandbox_strength
from armillary.recipe import UsageError

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the sandbox needs Linux")

SHORT = Limits(wall_s=1.0, cpu_s=5, memory_bytes=256 << 20, processes=16, disk_bytes=2 << 20, file_bytes=1 << 20)


def run(code, limits=SHORT, **options):
    return run_python(textwrap.dedent(code), limits, **options)


def needs(*layers):
    """Skip where this machine does not permit a layer; the reason says why."""
    strength = sandbox_strength()
    for layer in layers:
        if layer not in strength.active:
            pytest.skip(f"no layer {layer} here: {strength.missing.get(layer)}")


def survivors(mark):
    """Processes of this machine whose command line or environment holds ``mark``."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            try:
                if mark.encode() in (folder / "cmdline").read_bytes():
                    found.append(int(folder.name))
            except OSError:
                continue
    return found


def test_a_program_runs_with_input_and_files():
    outcome = run(
        """
        import sys, helper
        print(helper.twice(int(sys.stdin.read())), open("data/a.txt").read())
        open("out.txt", "w").write("x")
        sys.stderr.write("warned")
        sys.exit(3)
        """,
        stdin="21",
        files={"helper.py": "def twice(n): return 2 * n", "data/a.txt": "文"},
    )
    assert (outcome.stdout, outcome.stderr, outcome.exit) == ("42 文\n", "warned", 3)
    assert (outcome.signal, outcome.limit) == (None, None)


def test_the_libraries_of_this_python_can_be_imported():
    outcome = run_python("import numpy; print(numpy.arange(4).sum())")
    assert outcome.stdout == "6\n", outcome.stderr


def test_the_end_of_a_check_is_proved():
    code = "def double(n):\n    return 2 * n"
    assert run_checked(code, "assert double(2) == 4", SHORT)[0]
    passed, outcome = run_checked(code, "assert double(2) == 5", SHORT)
    assert not passed
    assert "AssertionError" in outcome.stderr


@pytest.mark.parametrize(
    "code",
    [
        "import os; os._exit(0)",
        "import sys; sys.exit(0)",
        "print('PASSED'); print('ok'); raise SystemExit",
        "import os\nfor d in range(3, 50):\n    try: os.write(d, b'0' * 32)\n    except OSError: pass\nos._exit(0)",
        "import builtins; builtins.AssertionError = None; quit()",
        "x = '''",
        "import os, signal; os.kill(os.getpid(), signal.SIGTERM)",
        "import atexit, os; atexit.register(os._exit, 0); raise ValueError",
    ],
)
def test_a_forged_end_does_not_pass(code):
    assert not run_checked(code, "assert 1 == 2", SHORT)[0]


@pytest.mark.parametrize(
    ("code", "check"),
    [
        ("x = '''", "assert False\n# '''"),
        ('x = f"""', 'assert False\n"""Done."""\n"""'),
        ("@(lambda function: lambda *values: None)", "def check(found):\n    assert False\ncheck(1)"),
        ("x = [", "1]\nassert False"),
        ("if False: \\", "assert False"),
        ("import builtins\nbuiltins.exec = builtins.compile = lambda *values: None", "assert False"),
    ],
)
def test_an_unfinished_program_does_not_swallow_its_check(code, check):
    assert not run_checked(code, check, SHORT)[0]


def test_a_check_sees_the_program_as_a_module_of_its_own():
    code = """
        from __future__ import annotations
        import dataclasses, inspect, pickle
        @dataclasses.dataclass
        class Point:
            x: int
        def limit(): return LIMIT
        def source(): return inspect.getsource(limit)
        LIMIT = 3
        """
    check = """
        assert __name__ == "__main__" and Point(1).x == 1 and limit() == 3
        LIMIT = 4
        assert limit() == 4 and pickle.loads(pickle.dumps(Point(2))) == Point(2)
        assert "return LIMIT" in source()
        def typed(x: 1 + 1): pass
        assert typed.__annotations__["x"] == 2
        """
    passed, outcome = run_checked(textwrap.dedent(code), textwrap.dedent(check), SHORT)
    assert passed, outcome.stderr


def test_the_proof_is_not_in_a_file_that_the_program_can_read():
    code = """
        import os, re, sys
        names = {os.path.realpath(name) for name in [__file__, sys.argv[0], *os.listdir(".")]}
        texts = [open(name).read() for name in names]
        found = re.search(r"write.(\\d+), b'(\\w+)'", "".join(texts))
        print(len(texts), bool(found), flush=True)
        os.write(int(found[1]), found[2].encode())
        os._exit(0)
        """
    passed, outcome = run_checked(textwrap.dedent(code), "assert False", SHORT)
    assert not passed and outcome.stdout == "1 False\n", outcome


def test_fork_bomb():
    mark = f"bomb{time.monotonic_ns()}"
    started = time.monotonic()
    outcome = run(
        f"""
        import os, sys
        if "{mark}" not in sys.argv:
            os.execv(sys.executable, [sys.executable, *sys.argv, "{mark}"])
        while True:
            try:
                os.fork()
            except OSError:
                pass
        """
    )
    assert outcome.limit == "wall_time"
    assert time.monotonic() - started < 15
    assert survivors(mark) == []


def test_the_number_of_processes_is_limited():
    outcome = run(
        """
        import os, time
        born = 0
        try:
            while born < 200:
                if os.fork() == 0:
                    time.sleep(5)
                    os._exit(0)
                born += 1
        except OSError:
            pass
        print(born)
        """
    )
    assert 1 <= int(outcome.stdout) <= 16


def test_threads_count_as_processes():
    outcome = run(
        """
        import threading, time
        born = 0
        try:
            while born < 200:
                threading.Thread(target=time.sleep, args=(5,), daemon=True).start()
                born += 1
        except RuntimeError:
            pass
        print(born, flush=True)
        import os
        os._exit(0)
        """
    )
    assert 1 <= int(outcome.stdout) <= 16


def test_endless_loop():
    outcome = run("print('begun', flush=True)\nwhile True: pass")
    assert (outcome.limit, outcome.exit, outcome.stdout) == ("wall_time", None, "begun\n")


@pytest.mark.slow
def test_processor_time():
    outcome = run("while True: pass", Limits(wall_s=10, cpu_s=1))
    assert outcome.limit == "cpu_time"
    assert outcome.signal in (signal.SIGXCPU, signal.SIGKILL)


def test_a_program_that_ignores_signals_ends():
    outcome = run(
        """
        import signal
        for number in signal.valid_signals():
            try:
                signal.signal(number, signal.SIG_IGN)
            except (OSError, ValueError):
                pass
        while True:
            pass
        """,
        Limits(wall_s=10, cpu_s=1),
    )
    assert outcome.limit == "cpu_time"


def test_large_allocation():
    outcome = run("x = bytearray(10 << 30)")
    assert (outcome.limit, outcome.exit) == ("memory", 1)


def test_a_caught_allocation_is_not_the_end():
    outcome = run("try:\n    x = bytearray(10 << 30)\nexcept MemoryError:\n    print('caught')")
    assert (outcome.stdout, outcome.limit, outcome.exit) == ("caught\n", None, 0)


def test_many_processes_share_one_limit_of_memory():
    outcome = run(
        """
        import os, time
        for _ in range(6):
            if os.fork() == 0:
                x = bytearray(120 << 20)
                for at in range(0, len(x), 4096):
                    x[at] = 1
                time.sleep(30)
        time.sleep(30)
        """,
        Limits(wall_s=10, memory_bytes=256 << 20),
    )
    assert outcome.limit == "memory"


@pytest.mark.parametrize(
    "attempt",
    [
        "import os; os.memfd_create('x')",
        "import ctypes; l = ctypes.CDLL(None, use_errno=True); x = l.shmget(0, 1 << 30, 0o1600); assert x >= 0",
    ],
)
def test_memory_that_belongs_to_no_process_is_refused(attempt):
    assert run(attempt).exit == 1


def test_home_and_other_folders_cannot_be_read(tmp_path):
    secret = tmp_path / "secret.txt"
    secret.write_text("sesame")
    home = Path.home()
    outcome = run(
        f"""
        import os, glob
        for path in ({str(secret)!r}, "/etc/shadow", "/etc/passwd", "/root/.ssh/id_rsa", "/proc/1/environ",
                     "/proc/1/root/etc/passwd", "/proc/self/root/{secret}", "/proc/1/cwd/{secret}"):
            try:
                print("READ", open(path).read())
            except OSError as error:
                pass
        for folder in ({str(home)!r}, {str(tmp_path)!r}, {str(Path(__file__).parent)!r}, "/var", "/mnt", "/sys"):
            try:
                seen = [name for name in os.listdir(folder) if name == ".ssh" or name.endswith((".txt", ".py"))]
                print("LISTED", folder, seen) if seen else None
            except OSError:
                pass
        """
    )
    assert (outcome.stdout, outcome.exit) == ("", 0), outcome.stderr


def test_the_environment_holds_no_keys(monkeypatch):
    monkeypatch.setenv("EXAMPLE_API_KEY", "sesame")
    outcome = run(
        """
        import os, glob
        print(os.environ)
        for path in glob.glob("/proc/*/environ") + glob.glob("/proc/*/task/*/environ"):
            try:
                print(open(path).read())
            except OSError:
                pass
        """
    )
    assert "HOME" in outcome.stdout
    assert "sesame" not in outcome.stdout + outcome.stderr


def test_killing_the_parent():
    outcome = run(
        """
        import os, signal
        for target in (os.getppid(), 1, -1, *range(2, 40), -os.getppid()):
            if target not in (os.getpid(), -os.getpid()):
                for number in (signal.SIGTERM, signal.SIGKILL, signal.SIGSTOP):
                    try:
                        os.kill(target, number)
                    except OSError:
                        pass
        print("still here")
        """
    )
    assert (outcome.stdout, outcome.exit, outcome.limit) == ("still here\n", 0, None)


def test_other_processes_are_not_seen():
    needs("pid", "files")
    outcome = run(
        f"""
        import os
        print([name for name in os.listdir("/proc") if name.isdigit()])
        try:
            print(open("/proc/{os.getpid()}/cmdline").read())
        except OSError:
            print("none")
        """
    )
    seen, other = outcome.stdout.splitlines()
    assert len(json.loads(seen.replace("'", '"'))) <= 2
    assert other == "none"


@pytest.mark.parametrize("pattern", ["/proc/*/mem", "/proc/*/fd/*", "/proc/*/maps"])
def test_the_boxs_own_processes_cannot_be_read_or_written(pattern):
    outcome = run(
        f"""
        import glob, os
        for path in glob.glob({pattern!r}):
            if path.split("/")[2] in ("self", "thread-self", str(os.getpid())):
                continue
            for mode in ("rb", "r+b"):
                try:
                    open(path, mode).close()
                    print("OPENED", path, mode)
                except OSError:
                    pass
        """
    )
    assert (outcome.stdout, outcome.exit) == ("", 0), outcome.stderr


def test_filling_the_disk_with_one_file():
    outcome = run("open('x', 'wb').write(b'0' * (10 << 20))")
    assert outcome.exit == 1
    assert "File too large" in outcome.stderr


def test_filling_the_disk_with_many_files():
    needs("files")
    outcome = run(
        """
        written = 0
        try:
            for i in range(1000):
                with open(f"f{i}", "wb") as file:
                    file.write(b"0" * (512 << 10))
                written += 512 << 10
        except OSError as error:
            print(written, error.errno)
        """
    )
    written, number = map(int, outcome.stdout.split())
    assert written <= 2 << 20
    assert number == 28


def test_filling_the_disk_with_empty_files():
    needs("files")
    outcome = run("import os\ntry:\n    for i in range(50000): open(f'e{i}', 'w').close()\nexcept OSError: print(i)")
    assert int(outcome.stdout) < 11_000


@pytest.mark.parametrize(
    "attempt",
    [
        "socket.create_connection(('127.0.0.1', {port}), timeout=1)",
        "socket.socket(socket.AF_INET6, socket.SOCK_STREAM)",
        "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', {port}))",
        "socket.socket(socket.AF_UNIX).connect('{path}')",
        "socket.socket(socket.AF_UNIX).connect('\\0armillary-test')",
        "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)",
        "socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)",
        "socket.getaddrinfo('example.com', 80)",
        "socket.create_server(('127.0.0.1', 0))",
    ],
)
def test_no_socket_opens(attempt, tmp_path):
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as local:
        local.bind(str(tmp_path / "s"))
        local.listen()
        call = attempt.format(port=server.getsockname()[1], path=tmp_path / "s")
        outcome = run(f"import socket\ntry:\n    {call}\n    print('OPEN')\nexcept OSError as error: print('closed')")
    assert outcome.stdout == "closed\n", outcome.stderr


def test_a_result_after_the_limit_does_not_count():
    outcome = run("import time\ntime.sleep(1.5)\nprint('late', flush=True)")
    assert (outcome.stdout, outcome.limit, outcome.exit) == ("", "wall_time", None)


def test_a_daemon_ends_with_the_program():
    mark = f"daemon{time.monotonic_ns()}"
    outcome = run(
        f"""
        import os, subprocess, sys, time
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", "{mark}"], start_new_session=True)
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                time.sleep(0.3)
                print("late", flush=True)
                os.execv(sys.executable, [sys.executable, "-c", "import time; time.sleep(60)", "{mark}"])
            os._exit(0)
        time.sleep(0.1)
        print("done")
        """
    )
    assert (outcome.stdout, outcome.exit) == ("done\n", 0)
    assert survivors(mark) == []


@pytest.mark.parametrize("channel", ["stdout", "stderr"])
def test_output_flood(channel):
    outcome = run(f"import sys\nwhile True: sys.{channel}.write('0123456789' * 1000)", Limits(output_bytes=5000))
    assert outcome.limit == "output"
    assert len(getattr(outcome, channel)) == 5000


def test_links_out_of_the_folder_lead_nowhere(tmp_path):
    (tmp_path / "secret.txt").write_text("sesame")
    outcome = run(
        f"""
        import os
        os.symlink({str(tmp_path)!r}, "away")
        os.symlink("/", "top")
        for path in ("away/secret.txt", "top{tmp_path}/secret.txt", "../../../..{tmp_path}/secret.txt"):
            try:
                print(open(path).read())
            except OSError:
                pass
        for path in ("away/new", "top/new", "top/tmp/../new2", "/usr/new"):
            try:
                open(path, "w").close()
                print("WRITTEN", path)
            except OSError:
                pass
        """
    )
    assert (outcome.stdout, outcome.exit) == ("", 0), outcome.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["secret.txt"]


def test_pythons_own_folders_cannot_be_written():
    package = Path(importlib.util.find_spec("numpy").origin).parent
    outcome = run(
        f"""
        import os, sys
        for folder in ({str(package)!r}, {str(package.parent)!r}, sys.prefix, sys.base_prefix,
                       os.path.dirname(os.__file__), "/usr/bin", "/", "/etc", "/dev", "/proc/sys/kernel"):
            for act in (lambda: open(folder + "/evil.pth", "w"), lambda: os.chmod(folder, 0o777),
                        lambda: os.rename(folder, folder + "2"), lambda: os.utime(folder)):
                try:
                    act()
                    print("DONE", folder)
                except OSError:
                    pass
        """
    )
    assert (outcome.stdout, outcome.exit) == ("", 0), outcome.stderr


@pytest.mark.parametrize(
    "attempt",
    [
        "libc.unshare(0x10000000)",
        "libc.mount(b'tmpfs', b'/box', b'tmpfs', 0, None)",
        "libc.umount2(b'/proc', 2)",
        "libc.chroot(b'/box')",
        "libc.setuid(0) if os.getuid() else -1",
        "libc.ptrace(16, 1, 0, 0)",
        "libc.syscall(56 if os.uname().machine == 'x86_64' else 220, 0x10000011, 0, 0, 0, 0)",
        "libc.syscall(425, 8, ctypes.create_string_buffer(200))",
        "libc.setns(os.open('/proc/self/ns/net', os.O_RDONLY), 0)",
        "libc.klogctl(3, ctypes.create_string_buffer(100), 100)",
    ],
)
def test_privileges_cannot_be_gained(attempt):
    outcome = run(f"import ctypes, os\nlibc = ctypes.CDLL(None, use_errno=True)\nprint({attempt})")
    assert outcome.stdout == "-1\n", (outcome.stdout, outcome.stderr)


def test_limits_cannot_be_raised():
    outcome = run(
        """
        import resource
        for name in ("RLIMIT_AS", "RLIMIT_NPROC", "RLIMIT_FSIZE", "RLIMIT_CPU"):
            number = getattr(resource, name)
            soft, hard = resource.getrlimit(number)
            try:
                resource.setrlimit(number, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
                print("RAISED", name)
            except (OSError, ValueError):
                pass
        """
    )
    assert (outcome.stdout, outcome.exit) == ("", 0)


def test_many_run_at_once():
    def one(number):
        return run_python(f"open('x', 'w').write('{number}'); print(open('x').read())", Limits(processes=4))

    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        assert [outcome.stdout for outcome in pool.map(one, range(18))] == [f"{number}\n" for number in range(18)]


def test_nothing_is_left_behind(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    descriptors = list(Path("/proc/self/fd").iterdir())
    run("print(1)")
    run("while True: pass", Limits(wall_s=0.2))
    assert list(tmp_path.iterdir()) == []
    assert len(list(Path("/proc/self/fd").iterdir())) == len(descriptors)
    assert str(tmp_path) not in Path("/proc/self/mounts").read_text()


def test_the_box_ends_with_its_caller():
    mark = f"orphan{time.monotonic_ns()}"
    code = f"import os, sys; os.execv(sys.executable, [sys.executable, '-c', 'import time; time.sleep(60)', '{mark}'])"
    source = f"from armillary.evaluate.sandbox import *; run_python({code!r}, Limits(wall_s=60))"
    with subprocess.Popen([sys.executable, "-c", source]) as caller:
        deadline = time.monotonic() + 30
        while len(survivors(f"sleep(60)\0{mark}")) < 1 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert survivors(f"sleep(60)\0{mark}")
        caller.kill()
    while survivors(f"sleep(60)\0{mark}") and time.monotonic() < deadline:
        time.sleep(0.02)
    assert survivors(f"sleep(60)\0{mark}") == []


def test_a_weak_sandbox_refuses_and_says_what_is_missing():
    weak = Policy(layers=("limits", "no-new-privileges"))
    with pytest.raises(SandboxError, match="lacks files or landlock; network or system-calls") as error:
        run("print(1)", policy=weak)
    assert "allow_weak=True" in str(error.value)
    assert run("print(1)", policy=Policy(weak.layers, allow_weak=True)).stdout == "1\n"


ATTACKS = """
import os, signal, socket, subprocess, sys, time
def attempt(name, act):
    try:
        act()
        print("DONE", name)
    except OSError:
        pass
attempt("socket", lambda: socket.socket())
attempt("unix", lambda: socket.socket(socket.AF_UNIX))
attempt("read", lambda: open("{secret}").read())
attempt("shadow", lambda: open("/etc/shadow").read())
attempt("environ", lambda: open("/proc/{parent}/environ").read())
attempt("write", lambda: open("{secret}2", "w"))
attempt("site", lambda: open(os.path.dirname(os.__file__) + "/evil.py", "w"))
attempt("kill", lambda: os.kill({parent}, signal.SIGTERM))
group = os.getpgid(os.getppid())
attempt("kill the group", lambda: os.killpg(group or 1, signal.SIGTERM))
if os.fork() == 0:
    os.setsid()
    os.execv(sys.executable, [sys.executable, "-c", "import time; time.sleep(60)", "{mark}"])
open("mine", "w").write("x")
print(open("mine").read(), flush=True)
"""


@pytest.mark.parametrize(
    "without",
    [
        ("user",),
        ("files",),
        ("landlock",),
        ("pid", "network", "ipc", "hostname", "files"),
        ("user", "pid", "network", "ipc", "hostname", "files"),
    ],
)
def test_each_layer_has_another_behind_it(without, tmp_path):
    policy = Policy(tuple(layer for layer in LAYERS if layer not in without))
    (tmp_path / "secret").write_text("sesame")
    mark = f"attacker{time.monotonic_ns()}"
    outcome = run(ATTACKS.format(secret=tmp_path / "secret", parent=os.getpid(), mark=mark), policy=policy)
    assert outcome.stdout == "x\n", (outcome.stdout, outcome.stderr)
    assert not set(without) & set(outcome.layers)
    assert survivors(mark) == []


AS_ANOTHER = """
import os, sys
from armillary.evaluate import sandbox, sandbox_launcher as system

def reachable(paths):
    # A view of the file system, for this process only, in which another user may enter the folders of this Python.
    system.unshare(system.CLONE_NEWNS)
    system.mount("none", "/", None, system.MS_REC | system.MS_PRIVATE)
    held = {path: os.open(path, os.O_PATH) for path in map(os.path.realpath, paths)}
    for top in {"/" + path.split("/")[1] for path in held}:
        if not os.stat(top).st_mode & 1:
            system.mount("tmpfs", top, "tmpfs", 0, "mode=755")
    for path, descriptor in held.items():
        if not os.path.exists(path):
            os.makedirs(path)
            system.mount(f"/proc/self/fd/{descriptor}", path, None, system.MS_BIND | system.MS_REC)

PREPARE
sandbox.tempfile.tempdir = "/tmp"
print(repr(sandbox.run_python(sys.argv[1], sandbox.Limits(wall_s=5))))
"""
PREPARE = {
    "an ordinary user": "reachable([sys.prefix, sys.base_prefix, os.path.dirname(sandbox.__file__)]); "
    "os.setgroups([]); os.setresgid(12345, 12345, 12345); os.setresuid(12345, 12345, 12345)",
    "root without capabilities": "system.drop_capabilities()",
}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize("who", ["an ordinary user", pytest.param("root without capabilities", marks=pytest.mark.slow)])
def test_others_than_root_have_the_same_protection(who, tmp_path):
    needs("user", "files")
    (tmp_path / "secret").write_text("sesame")
    mark = f"attacker{time.monotonic_ns()}"
    code = ATTACKS.format(secret=tmp_path / "secret", parent=os.getpid(), mark=mark)
    command = [sys.executable, "-c", AS_ANOTHER.replace("PREPARE", PREPARE[who]), code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert "stdout='x\\n'" in done.stdout, (done.stdout, done.stderr)
    # The kernel does not let root without capabilities map itself into a user namespace: other layers must do.
    expected = LAYERS if who == "an ordinary user" else ("landlock", "system-calls", "limits", "no-new-privileges")
    assert all(f"'{layer}'" in done.stdout for layer in expected), done.stdout
    assert survivors(mark) == []


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: run_python("", files={"../x": ""}), "points outside the sandbox's folder"),
        (lambda: run_python("", files={"/etc/x": ""}), "points outside the sandbox's folder"),
        (lambda: run_python("", files={"main.py": ""}), "reserved by the sandbox"),
        (lambda: run_python("", policy=Policy(("netwrok",))), "unknown layer netwrok"),
        (lambda: Limits(wall_s=0), "limit wall_s is 0"),
        (lambda: Limits(memory_bytes=1), "limit memory_bytes is 1"),
    ],
)
def test_what_is_refused(call, message):
    with pytest.raises(UsageError, match=message):
        call()


def test_code_that_is_not_text_for_python():
    assert "SyntaxError" in run("def f(:").stderr
    assert run("print('\\ud800')").exit == 1
    assert run("# \ud800").exit in (0, 1)
    assert run("import sys; sys.stdout.buffer.write(b'\\xff\\xfe')").stdout == "\ufffd\ufffd"


def test_a_launcher_that_cannot_start_is_an_error(monkeypatch):
    monkeypatch.setattr(sandbox, "_LAUNCHER", Path("/nowhere.py"))
    with pytest.raises(SandboxError, match="without a report"):
        run("print(1)")
