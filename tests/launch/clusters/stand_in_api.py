"""A stand-in for an API server of Kubernetes that the real kubectl talks to: it keeps objects and runs no pods.

It has the paths of discovery, of Jobs, Services and Pods, label selectors, and logs. It neither checks nor changes an
object, so it shows only that kubectl understands the commands and the files that it gets.
"""

from __future__ import annotations

import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, urlsplit

VERBS = ["create", "delete", "get", "list"]
KINDS = {"jobs": ("Job", "batch/v1"), "services": ("Service", "v1"), "pods": ("Pod", "v1")}


class StandInApi:
    """``objects`` by kind and name, ``logs`` by pod, and every deletion with its options in ``deleted``."""

    def __init__(self) -> None:
        self.objects: dict[str, dict[str, dict[str, Any]]] = {kind: {} for kind in KINDS}
        self.logs: dict[str, str] = {}
        self.deleted: list[tuple[str, str, dict[str, Any]]] = []
        self.refuses: dict[str, str] = {}  # message by kind
        api = self

        class Handler(_Handler):
            held = api

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        Thread(target=self.server.serve_forever, daemon=True).start()

    def config(self) -> dict[str, Any]:
        """A configuration of kubectl with this server."""
        return {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "clusters": [{"name": "test", "cluster": {"server": f"http://127.0.0.1:{self.server.server_port}"}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test", "namespace": "team"}}],
            "users": [{"name": "test", "user": {}}],
        }

    def add_pod(self, job: dict[str, Any], name: str, node: str, phase: str, log: str = "") -> None:
        """A pod of a Job, as the controller of Jobs makes it."""
        labels = {**job["spec"]["template"]["metadata"]["labels"], "batch.kubernetes.io/job-completion-index": "0"}
        self.objects["pods"][name] = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "namespace": "team", "labels": labels},
            "spec": {**job["spec"]["template"]["spec"], "nodeName": node},
            "status": {"phase": phase},
        }
        self.logs[name] = log

    def close(self) -> None:
        """Stop serving."""
        self.server.shutdown()
        self.server.server_close()


def _schema(version: str) -> dict[str, Any]:
    """That objects are checked by the server, so kubectl does not check them itself."""
    group, _, of = version.removeprefix("apis/").removeprefix("api/").rpartition("/")
    return {
        "openapi": "3.0.0",
        "info": {"title": "stand-in", "version": "1"},
        "paths": {
            f"/{version}/namespaces/{{namespace}}/{kind}/{{name}}": {
                "patch": {
                    "parameters": [{"name": "fieldValidation", "in": "query", "schema": {"type": "string"}}],
                    "x-kubernetes-group-version-kind": {"group": group, "kind": word, "version": of},
                    "responses": {},
                }
            }
            for kind, (word, _) in KINDS.items()
        },
    }


class _Handler(BaseHTTPRequestHandler):
    held: StandInApi
    protocol_version = "HTTP/1.1"

    def _send(self, code: int, body: Any) -> None:
        data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Type", "text/plain" if isinstance(body, str) else "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _status(self, code: int, reason: str, message: str) -> None:
        self._send(
            code,
            {"apiVersion": "v1", "kind": "Status", "status": "Failure", "code": code, "reason": reason,
             "message": message},
        )  # fmt: skip

    def _body(self) -> dict[str, Any]:
        data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return json.loads(data) if data else {}

    def _place(self) -> tuple[str, str, str]:
        """Kind, name and part of the requested object."""
        parts = urlsplit(self.path).path.strip("/").split("/")
        rest = parts[parts.index("namespaces") + 2 :] if "namespaces" in parts else [""]
        kind, name, part = (*rest, "", "")[:3]
        return kind, name, part

    def do_GET(self) -> None:
        path, query = urlsplit(self.path).path.rstrip("/"), parse_qs(urlsplit(self.path).query)
        kind, name, part = self._place()
        if path == "/version":
            self._send(200, {"major": "1", "minor": "32", "gitVersion": "v1.32.0"})
        elif path == "/api":
            self._send(200, {"kind": "APIVersions", "versions": ["v1"]})
        elif path == "/apis":
            version = {"groupVersion": "batch/v1", "version": "v1"}
            group = {"name": "batch", "versions": [version], "preferredVersion": version}
            self._send(200, {"kind": "APIGroupList", "apiVersion": "v1", "groups": [group]})
        elif path in ("/api/v1", "/apis/batch/v1"):
            version = path.removeprefix("/apis/").removeprefix("/api/")
            found = [
                {"name": each, "singularName": word.lower(), "namespaced": True, "kind": word, "verbs": VERBS}
                for each, (word, of) in KINDS.items()
                if of == version
            ]
            self._send(200, {"kind": "APIResourceList", "groupVersion": version, "resources": found})
        elif path == "/openapi/v3":
            of = {"api/v1": "/openapi/v3/api/v1", "apis/batch/v1": "/openapi/v3/apis/batch/v1"}
            self._send(200, {"paths": {one: {"serverRelativeURL": where} for one, where in of.items()}})
        elif path.startswith("/openapi/v3/"):
            self._send(200, _schema(path.removeprefix("/openapi/v3/")))
        elif part == "log":
            self._send(200, self.held.logs[name])
        elif name in self.held.objects.get(kind, {}):
            self._send(200, self.held.objects[kind][name])
        elif kind in KINDS and not name:
            wanted = dict(pair.split("=") for pair in ",".join(query.get("labelSelector", [])).split(",") if pair)
            items = [
                one for one in self.held.objects[kind].values() if wanted.items() <= one["metadata"]["labels"].items()
            ]
            word, version = KINDS[kind]
            self._send(200, {"kind": f"{word}List", "apiVersion": version, "metadata": {}, "items": items})
        else:
            self._status(404, "NotFound", f"{path} not found")

    def do_POST(self) -> None:
        kind, _, _ = self._place()
        body = self._body()
        if kind in self.held.refuses:
            return self._status(403, "Forbidden", self.held.refuses[kind])
        name = body["metadata"]["name"]
        if name in self.held.objects[kind]:
            return self._status(409, "AlreadyExists", f"{name} already exists")
        body["metadata"].setdefault("namespace", "team")
        self.held.objects[kind][name] = body
        self._send(201, body)

    def do_DELETE(self) -> None:
        kind, name, _ = self._place()
        options = self._body()
        if self.held.objects[kind].pop(name, None) is None:
            return self._status(404, "NotFound", f"{name} not found")
        self.held.deleted.append((kind, name, options))
        self._send(200, {"kind": "Status", "apiVersion": "v1", "status": "Success", "metadata": {}})

    def log_message(self, *args: object) -> None:
        """Nothing."""
