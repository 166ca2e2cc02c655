"""Processes that are measured beside ours: peers in separate environments, and matrix products.

A peer is started once and kept between its turns. What a peer needs is installed into a virtual environment in the
cache folder, with torch of our own version, by the ordinary pip; a peer that cannot be installed or that fails says why
and takes no further part.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

HERE = Path(__file__).parent
CORES = len(os.sched_getaffinity(0))
PRODUCTS = (("torch", "fp32"), ("onednn", "fp32"), ("numpy", "fp32"), ("torch", "bf16"))
# A peer's virtual environment: what is installed into it beside torch. None is needed where there is none.
ENVIRONMENTS = {"hugging-face": ("transformers>=5,<6", "accelerate"), "litgpt": ("litgpt==0.5.13",)}
PEERS = {
    "plain": None,
    "compiled": None,
    "hugging-face": "hugging-face",
    "litgpt": "litgpt",
    "litgpt-compiled": "litgpt",
}


def environment() -> dict[str, str]:
    """This process's environment without anything that limits threads or chooses kernels."""
    limits = ("OMP_", "MKL_", "OPENBLAS_", "KMP_", "DNNL_", "ONEDNN_")
    return {name: value for name, value in os.environ.items() if not name.startswith(limits)}


def product_rate(library: str, precision: str, processes: int, threads: int) -> float:
    """GFLOP/s of square matrix products in several processes at once, each with a number of threads."""
    command = [sys.executable, str(HERE / "products.py"), library, precision, str(threads)]
    started = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment())
        for _ in range(processes)
    ]
    for process in started:
        process.stdout.readline()
    for process in started:
        process.stdin.write("\n")
        process.stdin.flush()
    return sum(json.loads(process.communicate()[0])["gflops"] for process in started)


class Peer:
    """A process that trains as others do, kept between its turns; ``problem`` says why there is none."""

    def __init__(self, name: str, cache: Path) -> None:
        self.name, self.problem = name, ""
        python, needed = sys.executable, PEERS[name]
        if needed is not None:
            python, self.problem = virtual_environment(cache / f"venv-{needed}", ENVIRONMENTS[needed])
        if not self.problem:
            self.log = cache / f"{name}.log"
            self._process = subprocess.Popen(
                [python, str(HERE / "loops.py"), name],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self.log.open("w"),
                text=True,
                env=environment(),
            )

    def train(self, job: dict[str, Any]) -> dict[str, Any] | None:
        """Carry out a job; None, with ``problem`` set, where that failed."""
        if self.problem:
            return None
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            lines = self.log.read_text(errors="replace").strip().splitlines()
            self.problem = lines[-1] if lines else "ended without a word"
            return None
        return json.loads(line)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if hasattr(self, "_process"):
            self._process.stdin.close()
            self._process.wait()


def virtual_environment(folder: Path, packages: tuple[str, ...]) -> tuple[str, str]:
    """The interpreter of a virtual environment with torch of our version and ``packages``, and what went wrong."""
    python = folder / "bin" / "python"
    done = folder / "installed.json"
    wanted = [f"torch=={version('torch').split('+')[0]}", *packages]
    if done.exists() and json.loads(done.read_text()) == wanted:
        return str(python), ""
    print(f"installing {' '.join(wanted)}", file=sys.stderr)
    shutil.rmtree(folder, ignore_errors=True)
    for command in (
        [sys.executable, "-m", "venv", str(folder)],
        [str(python), "-m", "pip", "install", "--quiet", *wanted],
    ):
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode:
            lines = result.stderr.strip().splitlines() or ["no reason given"]
            return str(python), f"cannot be installed: {lines[-1]}"
    done.write_text(json.dumps(wanted))
    return str(python), ""
