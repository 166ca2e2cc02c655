"""Servers on this machine that speak the protocols of hubs, and that fail on command.

``HuggingFaceServer`` answers the requests of ``huggingface_hub`` (repositories, preupload, git-LFS, commits, trees).
``GitServer`` is git's own ``http-backend`` over bare repositories, with a git-LFS server beside it.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_" + "s3cret" * 7
Answer = tuple[int, dict[str, str], bytes]


@dataclass
class Fault:
    """Fails ``times`` requests of ``method`` whose path matches ``path``: a status, ``torn``, ``slow`` or ``other``.

    ``other`` lets the server keep other bytes than it got. ``after`` requests pass before the first fault.
    """

    method: str
    path: str
    how: int | str
    times: int = 1
    after: int = 0


@dataclass
class Asked:
    """A request: what was asked, with which headers and bytes."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


class HubServer:
    """A server on a free port; ``asked`` lists its requests, and ``faults`` says which of them fail."""

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        self.faults: list[Fault] = []
        self.objects: dict[str, bytes] = {}
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                body = self._body()
                path = unquote(self.path)
                outer.asked.append(Asked(self.command, path, dict(self.headers.items()), body))
                fault = outer._fault(self.command, path)
                if fault is not None and fault.how == "torn":
                    self.connection.shutdown(socket.SHUT_RDWR)
                    self.close_connection = True
                    return
                if fault is not None and fault.how == "slow":
                    time.sleep(0.3)
                if fault is not None and isinstance(fault.how, int):
                    wait = {"Retry-After": "0"} if fault.how == 429 else {}
                    status, headers, data = fault.how, {**wait, "X-Request-Id": "1"}, b'{"error": "told to fail"}'
                else:
                    other = fault is not None and fault.how == "other"
                    status, headers, data = outer.reply(outer.asked[-1], b"other" + body if other else body)
                self.send_response(status)
                for name, value in {"Content-Length": str(len(data)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(data)

            do_GET = do_POST = do_PUT = do_HEAD = answer  # noqa: N815

            def _body(self) -> bytes:
                if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
                    return self.rfile.read(int(self.headers.get("Content-Length", 0)))
                parts = []
                while size := int(self.rfile.readline().strip() or b"0", 16):
                    parts.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                return b"".join(parts)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    @contextmanager
    def running(self) -> Iterator[HubServer]:
        thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self._server.server_close()

    def _fault(self, method: str, path: str) -> Fault | None:
        for fault in self.faults:
            if fault.method == method and re.search(fault.path, path) and fault.times:
                if fault.after:
                    fault.after -= 1
                    return None
                fault.times -= 1
                return fault
        return None

    def reply(self, asked: Asked, body: bytes) -> Answer:
        raise NotImplementedError

    def put(self) -> list[str]:
        """The LFS objects whose bytes were put, in order."""
        return [a.path.rpartition("/")[2] for a in self.asked if a.method == "PUT" and "/lfs-objects/" in a.path]

    def lfs_batch(self, body: bytes) -> Answer:
        """The batch API of git-LFS: https://github.com/git-lfs/git-lfs/blob/main/docs/api/batch.md"""
        given = json.loads(body)
        rows = []
        for row in given["objects"]:
            oid, there = row["oid"], row["oid"] in self.objects
            href = {"href": f"{self.url}/lfs-objects/{oid}"}
            found: dict[str, Any] = {"oid": oid, "size": len(self.objects[oid]) if there else row["size"]}
            if given["operation"] == "download":
                rows.append(
                    {**found, "actions": {"download": href}}
                    if there
                    else {**found, "error": {"code": 404, "message": "no such object"}}
                )
            else:
                rows.append(found if there else {**found, "actions": {"upload": href}})
        answer = json.dumps({"transfer": "basic", "objects": rows, "hash_algo": "sha256"}).encode()
        return 200, {"Content-Type": "application/vnd.git-lfs+json"}, answer

    def lfs_object(self, asked: Asked, body: bytes) -> Answer:
        oid = asked.path.rpartition("/")[2]
        if asked.method == "GET":
            return (200, {}, self.objects[oid]) if oid in self.objects else (404, {}, b"")
        self.objects[oid] = body
        return 200, {}, b""


def as_json(value: Any, status: int = 200) -> Answer:
    return status, {"Content-Type": "application/json"}, json.dumps(value).encode()


@dataclass
class HuggingFaceServer(HubServer):
    """Repositories of models: branch by branch, the files with their bytes, or the id of their LFS object."""

    repos: dict[str, dict[str, dict[str, bytes | str]]] = field(default_factory=dict)
    private: dict[str, bool] = field(default_factory=dict)
    commits: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def reply(self, asked: Asked, body: bytes) -> Answer:
        path = urlsplit(asked.path).path
        if path.startswith("/lfs-objects/"):
            return self.lfs_object(asked, body)
        if asked.headers.get("Authorization", asked.headers.get("authorization")) != f"Bearer {TOKEN}":
            return as_json({"error": "Invalid credentials"}, 401)
        if path == "/api/repos/create":
            given = json.loads(body)
            repo = f"{given['organization']}/{given['name']}"
            if repo in self.repos:
                return as_json({"error": "You already created this model repo", "url": f"{self.url}/{repo}"}, 409)
            self.repos[repo], self.private[repo] = {"main": {}}, given.get("visibility") == "private"
            return as_json({"url": f"{self.url}/{repo}"})
        if path == "/api/validate-yaml":
            return as_json({"warnings": [], "errors": []})
        if found := re.fullmatch(r"/(.+)\.git/info/lfs/objects/batch", path):
            return self.lfs_batch(body)
        if (info := re.fullmatch(r"/api/models/([^/]+/[^/]+)", path)) and info[1] in self.repos:
            return as_json({"id": info[1], "sha": "0" * 40, "siblings": [], "private": False, "tags": []})
        found = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(preupload|commit|tree|branch|revision)/([^/]+)/?", path)
        if found is None or found[1] not in self.repos:
            return as_json({"error": "Repository not found"}, 404)
        branches, what, branch = self.repos[found[1]], found[2], found[3]
        if what == "branch":
            if branch in branches:
                return as_json({"error": "Reference already exists"}, 409)
            branches[branch] = dict(branches["main"])
            return as_json({})
        if branch not in branches:
            return as_json({"error": "Revision not found"}, 404)
        files = branches[branch]
        if what == "revision":
            return as_json({"id": found[1], "sha": "0" * 40, "siblings": [], "private": False, "tags": []})
        if what == "preupload":
            rows = json.loads(body)["files"]
            modes = [
                {
                    "path": row["path"],
                    "uploadMode": "lfs" if row["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                }
                for row in rows
            ]
            return as_json({"files": modes})
        if what == "tree":
            kept = {n: c for n, c in files.items() if isinstance(c, bytes) or c in self.objects}
            return as_json([self._entry(name, content) for name, content in kept.items()])
        for line in body.splitlines():
            row = json.loads(line)
            if row["key"] == "file":
                files[row["value"]["path"]] = base64.b64decode(row["value"]["content"])
            elif row["key"] == "lfsFile":
                if row["value"]["oid"] not in self.objects:
                    return as_json({"error": "LFS object not found"}, 400)
                files[row["value"]["path"]] = row["value"]["oid"]
        self.commits.append(branch)
        oid = hashlib.sha1(body).hexdigest()
        return as_json({"commitUrl": f"{self.url}/{found[1]}/commit/{oid}", "commitOid": oid})

    def _entry(self, name: str, content: bytes | str) -> dict[str, Any]:
        if isinstance(content, bytes):
            oid = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            return {"type": "file", "path": name, "size": len(content), "oid": oid}
        data = self.objects[content]
        lfs = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
        return {"type": "file", "path": name, "size": len(data), "oid": "0" * 40, "lfs": lfs}


@dataclass
class ModelScopeServer(HubServer):
    """Repositories of models with one branch: the files with their bytes, or the id of their LFS object."""

    repos: dict[str, dict[str, bytes | str]] = field(default_factory=dict)
    created: list[dict[str, Any]] = field(default_factory=list)
    commits: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def reply(self, asked: Asked, body: bytes) -> Answer:
        path = urlsplit(asked.path).path
        if path.startswith("/lfs-objects/"):
            return self.lfs_object(asked, body)
        if asked.headers.get("Authorization") != f"Bearer {TOKEN}":
            return as_json({"Code": 10990100001, "Message": "bad token"}, 401)
        if path == "/api/v1/models" and asked.method == "POST":
            given = json.loads(body)
            self.created.append(given)
            self.repos[f"{given['Path']}/{given['Name']}"] = {}
            return as_json({"Code": 200, "Data": {}})
        found = re.fullmatch(r"/api/v1/(?:repos/)?models/([^/]+/[^/]+)(?:/(.+))?", path)
        if found is None or found[1] not in self.repos:
            return as_json({"Code": 10010205001, "Message": "not found"}, 404)
        files, what = self.repos[found[1]], found[2]
        if what is None:
            return as_json({"Code": 200, "Data": {"Path": "me", "Name": found[1].partition("/")[2]}})
        if what == "info/lfs/objects/batch":
            rows = json.loads(self.lfs_batch(body)[2])["objects"]
            # it lists only what it wants
            return as_json({"Code": 200, "Data": {"objects": [row for row in rows if "actions" in row]}})
        if what == "repo/files":
            rows = [
                {"Path": name, "Type": "blob", "Sha256": hashlib.sha256(data).hexdigest()}
                for name, content in files.items()
                if (data := self.objects.get(content) if isinstance(content, str) else content) is not None
            ]
            return as_json({"Code": 200, "Data": {"Files": rows}})
        for action in json.loads(body)["actions"]:
            lfs = action["type"] == "lfs"
            files[action["path"]] = action["sha256"] if lfs else base64.b64decode(action["content"])
        self.commits.append(what)
        return as_json({"Code": 200, "Success": True, "Data": {}})


@dataclass
class GitServer(HubServer):
    """Bare repositories below ``root`` over smart HTTP, and their LFS objects; both want the token as a password."""

    root: Path

    def __post_init__(self) -> None:
        super().__init__()

    def create(self, repo: str) -> Path:
        path = self.root / f"{repo}.git"
        subprocess.run(["git", "init", "-q", "--bare", "-b", "master", path], check=True)
        subprocess.run(["git", "-C", path, "config", "http.receivepack", "true"], check=True)
        return path

    def reply(self, asked: Asked, body: bytes) -> Answer:
        parts = urlsplit(asked.path)
        if parts.path.startswith("/lfs-objects/"):
            return self.lfs_object(asked, body)
        given = asked.headers.get("Authorization", asked.headers.get("authorization", ""))
        if parts.path == "/api/v1/model":  # of Modelers
            if given != f"Bearer {TOKEN}":
                return as_json({"code": "invalid_token"}, 401)
            about = json.loads(body)
            repo = f"{about['owner']}/{about['name']}"
            if (self.root / f"{repo}.git").exists():
                return as_json({"code": "duplicate_creating"}, 400)
            self.create(repo)
            return as_json({"code": "", "data": about}, 201)
        if base64.b64decode(given.removeprefix("Basic ")).decode().partition(":")[2] != TOKEN:
            return 401, {"WWW-Authenticate": 'Basic realm="hub"', "LFS-Authenticate": 'Basic realm="hub"'}, b""
        if parts.path.endswith("/info/lfs/objects/batch"):
            return self.lfs_batch(body)
        wanted = re.match(r"/([^/]+/[^/]+\.git)/", parts.path)
        if wanted is None or not (self.root / wanted[1]).exists():
            return 404, {}, b"not found"
        environment = {
            **os.environ,
            "GIT_PROJECT_ROOT": str(self.root),
            "GIT_HTTP_EXPORT_ALL": "1",
            "REQUEST_METHOD": asked.method,
            "PATH_INFO": parts.path,
            "QUERY_STRING": parts.query,
            "CONTENT_TYPE": asked.headers.get("Content-Type", ""),
            "HTTP_CONTENT_ENCODING": asked.headers.get("Content-Encoding", ""),
            "HTTP_GIT_PROTOCOL": asked.headers.get("Git-Protocol", ""),
            "CONTENT_LENGTH": str(len(body)),
            "REMOTE_USER": "tester",
        }
        git = shutil.which("git")
        assert git is not None
        ended = subprocess.run([git, "http-backend"], input=body, env=environment, capture_output=True, check=True)
        head, _, content = ended.stdout.partition(b"\r\n\r\n")
        headers = dict(line.split(": ", 1) for line in head.decode().splitlines())
        return int(headers.pop("Status", "200").split()[0]), headers, content

    def holds(self, repo: str, branch: str) -> dict[str, bytes]:
        """The files of a branch, with the content of LFS objects in the place of their pointers."""
        path = self.root / f"{repo}.git"

        def git(*words: str) -> bytes:
            return subprocess.run(["git", "-C", path, *words], check=True, capture_output=True).stdout

        found = {}
        for name in git("ls-tree", "-r", "--name-only", branch).decode().splitlines():
            content = git("cat-file", "-p", f"{branch}:{name}")
            pointer = re.match(rb"version https://git-lfs.*\noid sha256:([0-9a-f]{64})\n", content)
            found[name] = self.objects[pointer[1].decode()] if pointer else content
        return found
