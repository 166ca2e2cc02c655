"""A server in a subprocess, and a chat template that knows tools."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2

# A template as Qwen's: tools in front, calls and their answers in the conversation.
TOOLS = (
    "{% if brief %}<|start|>brief<|end|>{% endif %}"
    "{% if tools %}<|start|>tools\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}"
    'Answer with <tool_call>{"name": …, "arguments": …}</tool_call>.<|end|>\n{% endif %}'
    "{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] }}"
    "{% for call in m['tool_calls'] %}<tool_call>{{ call['function'] | tojson }}</tool_call>{% endfor %}<|end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)


class Server:
    """A process that serves a model; ``facts`` is what it said when it was ready."""

    def __init__(self, model: Path, *options: Any, token: str | None = None) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        environment.pop("ARMILLARY_SERVE_TOKEN", None)
        if token is not None:
            environment["ARMILLARY_SERVE_TOKEN"] = token
        command = [sys.executable, "-m", "armillary", "serve", model, "--port", 0, "--threads", 1, "--json", *options]
        self.process = subprocess.Popen(
            list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )
        assert self.process.stdout is not None and self.process.stderr is not None
        said = ""
        while not said.rstrip().endswith("}"):
            line = self.process.stdout.readline()
            if not line:
                raise AssertionError(self.process.stderr.read())
            said += line
        self.facts = json.loads(said)
        self.url: str = self.facts["url"]
        self.root = self.url.removesuffix("/v1")
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        self.http = httpx2.Client(base_url=self.root, headers=headers, timeout=60)

    def metric(self, name: str, **labels: str) -> float:
        """The value of one metric; 0 if it was never counted."""
        wanted = "".join(f',{key}="{value}"' for key, value in labels.items())[1:]
        found = re.search(
            rf"^{name}{re.escape('{' + wanted + '}') if wanted else ''} (\S+)$", self.http.get("/metrics").text, re.M
        )
        return float(found[1]) if found else 0.0

    def until(self, true: Callable[[], bool], seconds: float = 60.0) -> None:
        """Wait until something is true."""
        end = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < end, "the condition was not met in time"
            time.sleep(0.02)

    def end(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        """Send a signal, and return the exit code and what was written to standard error."""
        self.process.send_signal(number)
        _, err = self.process.communicate(timeout=60)
        return self.process.returncode, err


@contextlib.contextmanager
def serving(model: Path, *options: Any, token: str | None = None) -> Iterator[Server]:
    """A server that has ended afterwards."""
    server = Server(model, *options, token=token)
    try:
        yield server
    finally:
        server.http.close()
        server.process.kill()
        server.process.communicate()
