"""Serves a model with vLLM instead of this server: the same model folder, address, name and token."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from armillary.recipe import UsageError
from armillary.serve.options import ServeOptions


def find_vllm() -> str | None:
    """The path of the program ``vllm``, next to this Python or on PATH; None if it is not installed."""
    beside = Path(sys.executable).with_name("vllm")
    return str(beside) if os.access(beside, os.X_OK) and beside.is_file() else shutil.which("vllm")


def vllm_reads(target: str) -> bool:
    """Whether ``target`` is a Hugging Face folder. A folder with ``armillary.json`` has Armillary's own format."""
    return (Path(target) / "config.json").is_file() and not (Path(target) / "armillary.json").exists()


def vllm_command(program: str, target: str, options: ServeOptions) -> list[str]:
    """The command line that serves the folder ``target`` with the vLLM at ``program``.

    Raises:
        UsageError: ``target`` is not a folder that vLLM reads, or an option that vLLM does not support.
    """
    if not vllm_reads(target):
        raise UsageError(
            f"{target}: vLLM reads Hugging Face folders; run `armillary convert {target} NEW --to huggingface` first"
        )
    given = options.backend
    for value, name in ((given.device, "--device"), (given.threads, "--threads"), (given.tokenizer, "--tokenizer")):
        if value is not None:
            raise UsageError(f"{name} is not an option of the vllm backend; leave it out, or use --backend native")
    command = [program, "serve", target, "--host", options.host, "--port", str(options.port)]
    command += ["--served-model-name", options.name or Path(target).resolve().name]
    if given.context is not None:
        command += ["--max-model-len", str(given.context)]
    if given.batch_size is not None:
        command += ["--max-num-seqs", str(given.batch_size)]
    if given.precision is not None:
        command += ["--dtype", given.precision]
    return command


def run_vllm(target: str, options: ServeOptions, token: str | None) -> None:
    """Replace this process with vLLM.

    The token is passed in the environment, since other users can read the command line of a process.

    Raises:
        UsageError: vLLM is not installed, or cannot serve ``target`` with these options.
    """
    program = find_vllm()
    if program is None:
        raise UsageError(
            "backend vllm: vLLM is not installed (no program vllm on PATH); pip install vllm, or use --backend native"
        )
    command = vllm_command(program, target, options)
    environment = dict(os.environ)
    if token is not None:
        environment["VLLM_API_KEY"] = token
    sys.stdout.flush()
    os.execve(program, command, environment)
