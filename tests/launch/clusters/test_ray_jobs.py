"""Jobs on a real Ray cluster on this machine, through its dashboard."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread
from typing import ClassVar

import pytest
from real_slurm import wait_for
from test_slurm import kill_in_study, state, trainer, wait_state

from armillary.launch import find_job, list_jobs
from armillary.launch.clusters.cluster import Task, UnreachableError
from armillary.launch.clusters.jobs import plan
from armillary.launch.clusters.ray import Ray, RayProfile
from armillary.recipe import ArmillaryError, UsageError

TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "of-this-test"}


@pytest.fixture(scope="module")
def dashboard(tmp_path_factory):
    """Start a cluster with two slots and return the address of its dashboard."""
    for package in ("ray", "aiohttp_cors", "opencensus", "smart_open", "colorful"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"no {package}: pip install 'armillary[ray-dashboard]'")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = tmp_path_factory.mktemp("r")
    program = (
        "import ray, time\n"
        f"ray.init('local', num_cpus=2, include_dashboard=True, dashboard_host='127.0.0.1', dashboard_port={port}, "
        f"object_store_memory=100 * 2**20)\n"
        "print('up', flush=True)\n"
        "time.sleep(3600)\n"
    )
    environment = {**os.environ, **TOKEN, "RAY_USAGE_STATS_ENABLED": "0"}
    with (folder / "out").open("wb") as out:
        cluster = subprocess.Popen([sys.executable, "-c", program], env=environment, stdout=out, stderr=out)
    try:

        def up():
            assert cluster.poll() is None, (folder / "out").read_text()[-2000:]
            return b"up\n" in (folder / "out").read_bytes()

        wait_for(up, "Ray does not start", 180)
        yield f"http://127.0.0.1:{port}"
    finally:
        cluster.send_signal(signal.SIGINT)
        cluster.wait(60)


@pytest.mark.slow
def test_killed_restarted_and_cancelled_on_ray(dashboard, run_file, armillary, monkeypatch):
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", dashboard)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "wrong")
    path = run_file(steps=400, every_steps=20)
    assert "refused (403): Forbidden" in armillary("submit", path, "--on", "ray", check=False).stderr
    for variable, value in TOKEN.items():
        monkeypatch.setenv(variable, value)
    results = path.parent / "large"
    name = json.loads(armillary("submit", path, "--on", "ray", "--json").stdout)["job"]
    assert name in armillary("submit", path, "--on", "ray", check=False).stderr
    wait_for(lambda: any(results.glob("checkpoints/step-*")), "no checkpoint", 240)
    assert state(name).state == "running"
    os.kill(trainer(results), signal.SIGKILL)
    wait_for(lambda: state(name).attempts == 2, "it is not restarted", 240)
    wait_for(lambda: trainer(results) is not None, "it does not train", 240)
    armillary("cancel", name)
    assert wait_state(name, "cancelled").attempts == 2
    second = json.loads(armillary("submit", path, "--on", "ray", "--json").stdout)["job"]
    assert wait_state(second, "done", "failed").state == "done"
    print(armillary("logs", second).stdout)
    assert not list(path.parent.glob("pwned"))


@pytest.mark.slow
def test_a_recipe_on_ray_is_killed_restarted_and_done(dashboard, recipe_file, armillary, whole_study, monkeypatch):
    """Its runs are tasks of the cluster."""
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", dashboard)
    for variable, value in TOKEN.items():
        monkeypatch.setenv(variable, value)
    results = recipe_file.parent / "tiny"
    name = json.loads(armillary("submit", recipe_file, "--on", "ray", "--json").stdout)["job"]
    kill_in_study(results)
    done = wait_state(name, "done", "failed")
    log = armillary("logs", name).stdout
    assert done.state == "done" and done.attempts == 2, log
    print(whole_study(results), log)


class Wrong(BaseHTTPRequestHandler):
    """A server whose answers are not those of a dashboard."""

    answers: ClassVar = {}

    def do_GET(self):
        code, body = Wrong.answers[self.command]
        self.send_response(code)
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self):
        self.do_GET()

    def log_message(self, *args):
        """Log nothing."""


def test_wrong_answers_of_a_dashboard(run_file, tmp_path):
    server = HTTPServer(("127.0.0.1", 0), Wrong)
    Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    path = run_file()
    task = Task("large-1", path, path.parent / "large", ranks=2)
    profile = RayProfile(address=address)
    task.place.mkdir(parents=True)
    plan(task, "ray", profile, ())
    for answer, said in (
        ((200, b"<html>"), "the answer is not JSON"),
        ((200, b'[{"submission_id": "large-1"}]'), "sent no list of jobs"),
        ((200, b"3"), "sent no list of jobs"),
        ((401, b"who are you"), r"refused \(401\): who are you"),
    ):
        Wrong.answers = {"GET": answer, "POST": answer}
        (found,), (problem,) = list_jobs([find_job("large-1")])
        assert found.state == "unknown"
        with pytest.raises(ArmillaryError, match=said):
            Ray(profile).seen([task])
        assert problem.startswith("ray: ")
    Wrong.answers = {"POST": (500, b"submission_id exists")}
    with pytest.raises(ArmillaryError, match=r"refused \(500\): submission_id exists"):
        Ray(profile).submit(task, Ray(profile).job_file(task, ()))
    server.shutdown()
    server.server_close()
    assert list_jobs([find_job("large-1")])[0][0].state == "unknown"  # nothing listens
    with pytest.raises(ArmillaryError, match="Connection refused") as error:
        Ray(profile).submit(task, Ray(profile).job_file(task, ()))
    assert not isinstance(error.value, UnreachableError)  # it has not arrived


@pytest.mark.parametrize("answer", [b"SSH-2.0-OpenSSH_9.2\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n[", b""])
def test_a_server_that_is_no_dashboard_or_is_lost(answer, run_file):
    server = socket.create_server(("127.0.0.1", 0))

    def serve():
        for _ in range(2):
            connection, _ = server.accept()
            connection.recv(65536)
            connection.sendall(answer)
            connection.close()

    Thread(target=serve, daemon=True).start()
    ray = Ray(RayProfile(address=f"http://127.0.0.1:{server.getsockname()[1]}"))
    path = run_file()
    task = Task("large-1", path, path.parent / "large", ranks=2)
    with pytest.raises(UnreachableError, match="no answer"):
        ray.seen([task])
    with pytest.raises(UnreachableError, match="no answer"):  # it may have arrived
        ray.submit(task, ray.job_file(task, ()))
    server.close()


@pytest.mark.parametrize(
    "address", ["ray://head:10001", "http://", "http://head:x", "http://he ad:1", "http://head\n:1", "head:8265"]
)
def test_an_address_that_is_none(address, run_file, monkeypatch):
    path = run_file()
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", address)
    with pytest.raises(UsageError, match="is not that of a dashboard; give http://HOST:8265"):
        Ray(RayProfile()).job_file(Task("large-1", path, path.parent / "large", ranks=2), ())


def test_secrets_of_a_dashboard(run_file, monkeypatch, tmp_path):
    """No password in an address, and no token for another host than the one it is meant for."""
    path = run_file()
    task = Task("large-1", path, path.parent / "large", ranks=2)
    with pytest.raises(UsageError, match="holds a user or a password") as error:
        Ray(RayProfile(address="http://me:hunter2@head:8265")).job_file(task, ())
    assert "hunter2" not in str(error.value)
    got = []

    class Elsewhere(BaseHTTPRequestHandler):
        def do_GET(self):
            got.append(self.headers.get("Authorization"))
            self.send_response(200 if self.server is servers[1] else 302)
            self.send_header("Location", f"http://127.0.0.1:{servers[1].server_port}/")
            self.end_headers()
            self.wfile.write(b"[]")

        def log_message(self, *args):
            """Nothing."""

    servers = [HTTPServer(("127.0.0.1", 0), Elsewhere) for _ in range(2)]
    for server in servers:
        Thread(target=server.serve_forever, daemon=True).start()
    ray = Ray(RayProfile(address=f"http://127.0.0.1:{servers[0].server_port}"))
    monkeypatch.setenv("RAY_AUTH_TOKEN", "of-this-cluster\n")
    assert ray.seen([task]) == {} and got == ["Bearer of-this-cluster", None]
    monkeypatch.setenv("RAY_AUTH_TOKEN", "of\nthis")
    with pytest.raises(UsageError, match="RAY_AUTH_TOKEN: holds characters that no token has"):
        ray.seen([task])
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(UsageError, match="none: cannot be read"):
        ray.seen([task])
    for server in servers:
        server.shutdown()
        server.server_close()
