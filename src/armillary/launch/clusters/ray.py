"""Jobs on Ray, through the HTTP interface of its dashboard; Ray itself need not be installed here.

A recipe uses every free slot of the cluster (``armillary run --on ray``), a large run the devices of one node.
"""

from __future__ import annotations

import json
import os
import shlex
import socket
import urllib.error
import urllib.request
from collections.abc import Sequence
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from armillary.launch.clusters.cluster import (
    LOG,
    Cluster,
    ClusterKind,
    JobFile,
    Seen,
    Task,
    UnreachableError,
    register_cluster,
)
from armillary.launch.clusters.commands import supervised, work
from armillary.launch.clusters.profiles import ClusterProfile, Count, Line
from armillary.recipe import ArmillaryError, UsageError, without_passwords

FILE = "job.json"
_PATIENCE_S = 30.0
_STATES = {"PENDING": "pending", "RUNNING": "running"}


class RayProfile(ClusterProfile):
    """A profile of Ray: ``clusters/ray.yaml``. ``address`` is the dashboard's (default: RAY_API_SERVER_ADDRESS)."""

    address: Line | None = None
    gpus: Count | None = None
    cpus: Count | None = None


class Ray(Cluster):
    """A Ray cluster behind its dashboard."""

    profile: RayProfile

    def resolved(self) -> RayProfile:
        """The profile with the address of the dashboard."""
        return self.profile.model_copy(update={"address": self._address()})

    def job_file(self, task: Task, excluded: Sequence[str]) -> JobFile:
        """The request as JSON."""
        profile = self.profile
        if task.nodes > 1:
            remedy = "leave out --nodes: it takes every free slot" if task.ranks is None else "take Slurm or Kubernetes"
            raise UsageError(f"--nodes {task.nodes}: --on ray does not divide a job by nodes; {remedy}")
        command = work(task, profile)
        if task.ranks is None:
            command += ["--on", "ray"]
        log = shlex.quote(str(task.place / LOG))
        request: dict[str, Any] = {
            "entrypoint": f"{shlex.join(supervised('ray', task, profile, command))} >> {log} 2>&1",
            "submission_id": task.name,
            "runtime_env": {"env_vars": profile.variables},
            "metadata": {"armillary": str(task.file)},
        }
        for name, size in {"entrypoint_num_gpus": profile.gpus, "entrypoint_num_cpus": profile.cpus}.items():
            if size is not None:
                request[name] = size
        body = json.dumps(request, indent=1, ensure_ascii=False) + "\n"
        return JobFile(FILE, body, ("POST", f"{self._address()}/api/jobs/", str(task.place / FILE)))

    def submit(self, task: Task, job: JobFile) -> str:
        """Send the request."""
        self._ask("POST", "", json.loads(job.text))
        return task.name

    def seen(self, tasks: Sequence[Task]) -> dict[str, Seen]:
        """The jobs that the cluster remembers."""
        try:
            listed = self._ask("GET", "")
        except UsageError:
            raise
        except ArmillaryError as error:
            raise UnreachableError(str(error)) from error
        names, found = {task.name for task in tasks}, {}
        try:
            for job in listed:
                if (name := job.get("submission_id")) in names:
                    node = ((job.get("driver_info") or {}).get("node_ip_address"),)
                    state = _STATES.get(job["status"], "ended")
                    note = (job.get("message") or "").splitlines()[:1] if state != "running" else []
                    found[name] = Seen(
                        state, name, job["status"].lower(), tuple(filter(None, node)), "".join(note)  # type: ignore[arg-type]
                    )  # fmt: skip
        except (AttributeError, KeyError, TypeError) as error:
            raise UnreachableError(f"{self._address()} sent no list of jobs ({error!r})") from error
        return found

    def cancel(self, task: Task, seen: Seen, now: bool) -> None:
        """Stop a pending job, or a running one that is not to stop by itself."""
        if now or seen.state == "pending":
            self._ask("POST", f"{task.name}/stop")

    def _address(self) -> str:
        address = self.profile.address or os.environ.get("RAY_API_SERVER_ADDRESS") or "http://127.0.0.1:8265"
        try:
            parts = urlsplit(address)
            whole = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        except ValueError:
            whole = False
        if not whole or not address.isascii() or not address.isprintable() or " " in address:
            raise UsageError(f"address: {without_passwords(address)} is not that of a dashboard; give http://HOST:8265")
        if "@" in parts.netloc:
            raise UsageError(
                "address: holds a user or a password; the token of a Ray cluster belongs in RAY_AUTH_TOKEN"
            )
        return address.rstrip("/")

    def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """The answer of the dashboard.

        Raises:
            ArmillaryError: it refused, with its message, or nothing listens at its address.
            UnreachableError: it does not answer, or sent something else than JSON.
        """
        url = f"{self._address()}/api/jobs/{path}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method=method)
        if (token := _token()) is not None:
            request.add_unredirected_header("Authorization", f"Bearer {token}")  # for this host alone
        try:
            with urllib.request.urlopen(request, timeout=_PATIENCE_S) as answer:
                return json.loads(answer.read())
        except urllib.error.HTTPError as error:
            refusal = " ".join(error.read(2000).decode(errors="replace").split())[-400:]
            raise ArmillaryError(f"{url}: refused ({error.code}): {refusal}") from error
        except (OSError, HTTPException) as error:
            why = getattr(error, "reason", None) or error
            unsent = isinstance(why, ConnectionRefusedError | socket.gaierror)
            raise (ArmillaryError if unsent else UnreachableError)(f"{url}: no answer ({why!s:.200})") from error
        except ValueError as error:
            raise UnreachableError(f"{url}: the answer is not JSON; is this Ray's dashboard?") from error


def _token() -> str | None:
    """The token of a cluster that wants one, where Ray's own client finds it."""
    mode = os.environ.get("RAY_AUTH_MODE", "")
    if mode not in ("", "token"):
        return None
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    where, token = "RAY_AUTH_TOKEN", os.environ.get("RAY_AUTH_TOKEN")
    if token is None:
        try:
            where, token = str(path), path.read_text()
        except (OSError, UnicodeDecodeError) as error:
            if mode == "":
                return None
            why = getattr(error, "strerror", None) or "not text"
            raise UsageError(f"{path}: cannot be read ({why}); it holds the token of the Ray cluster") from error
    token = token.strip()
    if not (token.isascii() and token.isprintable()):
        raise UsageError(f"{where}: holds characters that no token has; write the token of the Ray cluster alone")
    return token or None


register_cluster("ray", ClusterKind(RayProfile, Ray, excludes=False))
