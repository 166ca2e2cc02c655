"""Checks a folder before it is sent: checksums, secrets, paths of this machine, and the logits of ``transformers``."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from armillary.model import build, gguf_metadata, logits_of, open_model
from armillary.publish.export import check_lineage
from armillary.publish.secrets import paths_in, secrets_in, tokens_in
from armillary.publish.sums import check_sums
from armillary.recipe import ArmillaryError, UsageError

# Largest difference of fp32 logits, relative to the largest logit.
CLOSE = 1e-4
_SEQUENCES, _LENGTH = 2, 32
_BINARY = frozenset({".safetensors", ".gguf", ".ckpt", ".bin", ".model"})
# Parts of a tokenizer that contain pieces of its training text; "/usr/bin/" may be one of them.
_PIECES = frozenset({"vocab", "merges", "added_tokens", "added_tokens_decoder"})
_PIECE_FILES = frozenset({"vocab.json", "merges.txt", "added_tokens.json"})
_PROGRAM = """
import sys, torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
torch.set_num_threads(int(sys.argv[4]))
AutoTokenizer.from_pretrained(sys.argv[1])
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)
with torch.no_grad():
    save_file({"logits": model(load_file(sys.argv[2])["tokens"]).logits.float().contiguous()}, sys.argv[3])
"""


@dataclass(frozen=True)
class Checked:
    """The number of checked files, and the difference of logits relative to the largest; None if it was not measured.

    ``skipped`` says why a check was left out.
    """

    files: int
    difference: float | None
    skipped: str | None


def check_leaving(folder: Path, *, load: bool = True) -> Checked:
    """Check the staged ``folder``; ``load`` computes logits in ``transformers`` (in a separate process) and here.

    Raises:
        UsageError: a text file holds a secret or a path of this machine; one line each, without the secret.
        DamagedFileError: a file does not have its checksum.
        ArmillaryError: ``transformers`` does not load the folder, or computes other logits.
    """
    checked = check_sums(folder)
    check_lineage(folder)
    problems = [line for path in sorted(folder.iterdir()) for line in _leaks(path)]
    if problems:
        raise UsageError("\n".join(problems))
    if not load:
        return Checked(len(checked), None, "not loaded, as asked")
    if importlib.util.find_spec("transformers") is None:
        return Checked(
            len(checked), None, "not loaded: transformers is not installed (pip install 'armillary[export]')"
        )
    if not (folder / "config.json").is_file() or open_model(folder).format != "huggingface":
        return Checked(len(checked), None, "not loaded: transformers does not read this format")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if config.get("quantization_config") and importlib.util.find_spec("compressed_tensors") is None:
        return Checked(len(checked), None, "not loaded: transformers needs compressed-tensors for packed weights")
    return Checked(len(checked), _difference(folder), None)


def _leaks(path: Path) -> Iterator[str]:
    """A line for every secret and every local path in the text of a file."""
    if path.suffix in _BINARY:
        text = json.dumps(_metadata(path), ensure_ascii=False)
        yield from (
            f"{path.name}: metadata: contains {what}; remove it" for what in (*secrets_in(text), *paths_in(text))
        )
        return
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        yield f"{path.name}: is neither text nor weights, so it cannot be checked; move it away"
        return
    prose = "" if path.name in _PIECE_FILES else _prose(path, text)
    secrets = dict.fromkeys((*tokens_in(text), *secrets_in(prose)))
    yield from (f"{path.name}: {what}, which must not be published; remove it" for what in secrets)
    # the folders of this user and of this call, at any path
    own = [str(place) for place in (Path.home(), Path.cwd()) if len(place.parts) > 2]
    found = [f"line {i}: {place}" for i, line in enumerate(prose.splitlines(), 1) for place in own if place in line]
    yield from (f"{path.name}: {what} is a path of a machine; remove it" for what in found or paths_in(prose))


def _prose(path: Path, text: str) -> str:
    """The text of a file without the pieces of a tokenizer."""
    if not path.name.startswith("tokenizer") or path.suffix != ".json":
        return text
    try:
        return json.dumps(_without_pieces(json.loads(text)), ensure_ascii=False, indent=1)
    except (ValueError, RecursionError):
        return text


def _without_pieces(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_pieces(part) for key, part in value.items() if key not in _PIECES}
    return [_without_pieces(part) for part in value] if isinstance(value, list) else value


def _metadata(path: Path) -> dict[str, Any]:
    """The metadata in the header of a safetensors or GGUF file; empty for others."""
    if path.suffix == ".gguf":
        return gguf_metadata(path)
    if path.suffix != ".safetensors":
        return {}
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        try:
            header = json.loads(file.read(size))
        except ValueError as error:
            raise ArmillaryError(f"{path}: cannot be read as weights ({error}); publish the model again") from error
    found: dict[str, Any] = header.get("__metadata__") or {}
    return found


def _difference(folder: Path) -> float:
    """The largest difference between the logits of ``transformers`` and ours, relative to the largest logit."""
    source = open_model(folder)
    length = min(_LENGTH, source.context_length or _LENGTH)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, source.shape.vocab_size, (_SEQUENCES, length), generator=generator)
    with tempfile.TemporaryDirectory() as scratch:
        given, found = Path(scratch) / "tokens.safetensors", Path(scratch) / "logits.safetensors"
        save_file({"tokens": tokens}, given)
        threads = str(torch.get_num_threads())
        command = [sys.executable, "-c", _PROGRAM, str(folder), str(given), str(found), threads]
        environment = {name: value for name, value in os.environ.items() if not name.endswith("_TOKEN")}
        environment |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if ended.returncode:
            output = ended.stderr.strip().splitlines() or [f"exit code {ended.returncode}"]
            raise ArmillaryError(f"{folder.name}: transformers cannot load it: {output[-1][:300]}")
        theirs = load_file(found)["logits"]
    ours = logits_of(build(source), tokens)
    difference = float((ours - theirs).abs().max() / ours.abs().max())
    if not difference <= CLOSE:
        raise ArmillaryError(
            f"{folder.name}: transformers computes different logits: they differ by {difference:.3g} of the largest, "
            f"more than {CLOSE:g}; please report it with the configuration of the model"
        )
    return difference
