"""Servers in subprocesses, over the tiny model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from server_process import TOOLS, Server, serving
from tiny_model import tiny_gguf, tiny_hf

__all__ = ["tiny_gguf", "tiny_hf"]

for _package in ("starlette", "uvicorn", "prometheus_client"):
    pytest.importorskip(_package, reason="needs the extra serve")


@pytest.fixture(scope="session")
def tiny_tools(tiny_hf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with a template that knows tools."""
    folder = tmp_path_factory.mktemp("tools") / "tiny"
    shutil.copytree(tiny_hf, folder)
    (folder / "chat_template.jinja").write_text(TOOLS, encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def server(tiny_tools: Path) -> Iterator[Server]:
    """The server that most tests share: 8 answers at a time, 24 may wait."""
    with serving(tiny_tools, "--batch-size", 8, "--queue", 24) as one:
        yield one
        assert one.end()[0] == 0


@pytest.fixture(scope="session")
def endless(tiny_hf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model without an end token, and with a long context: its answers go on until they are stopped."""
    folder = tmp_path_factory.mktemp("endless") / "tiny"
    shutil.copytree(tiny_hf, folder)
    for name, changes in (
        ("config.json", {"max_position_embeddings": 100_000, "eos_token_id": 99_999}),
        ("generation_config.json", {"eos_token_id": 99_999}),
    ):
        document = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(document | changes))
    return folder
