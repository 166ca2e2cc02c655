"""Checkpoints of one run: all that training needs to go on bit for bit.

A checkpoint is a folder ``step-N`` with the weights and AdamW's moments (safetensors), the metrics so far (Parquet) and
a small JSON that names their checksums. It is written aside and renamed, so it is there whole or not at all; one whose
files do not match their checksums (a torn disk, a flipped bit) is passed over for the one before it. There is no saved
state of the data loader and none of a random generator: the batches are a function of the step (contract 2), and
nothing in a step is random.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Collection
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file, save_file

from armillary.files import HOST, aside, sync, write_json
from armillary.model import Transformer
from armillary.recipe import ArmillaryError

FORMAT = 1

_ABANDONED_S = 3600.0
_FILES = ("model.safetensors", "optimizer.safetensors", "metrics.parquet")


def save_checkpoint(
    folder: Path,
    step: int,
    model: Transformer,
    optimizer: torch.optim.Optimizer,
    metrics: list[dict[str, float]],
    keep: Collection[int] = (),
) -> Path:
    """Write ``folder/step-N`` and remove older checkpoints, except those of the steps in ``keep``.

    The checkpoint before the new one stays, as the one to fall back on. Later ones go: they are damaged, or the run
    would have gone on from them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / f"step-{step}"
    hidden = aside(final)
    hidden.mkdir()
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, hidden / _FILES[0])
    names: dict[torch.Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    moments = {
        f"{names[parameter]}/{key}": torch.as_tensor(value).contiguous()
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
    }
    save_file(moments, hidden / _FILES[1])
    pq.write_table(metrics_table(metrics), hidden / _FILES[2])
    sums = {name: _sha256(hidden / name) for name in _FILES}
    write_json(hidden / "checkpoint.json", {"format": FORMAT, "step": step, "sha256": sums})
    for name in _FILES:
        sync(hidden / name)
    sync(hidden)
    shutil.rmtree(final, ignore_errors=True)  # only a damaged one of the same step can stand there
    hidden.rename(final)
    sync(folder)
    before = [s for s in checkpoint_steps(folder) if s < step and s not in keep][-1:]
    remove_checkpoints(folder, {*keep, *before, step})
    return final


def remove_checkpoints(folder: Path, keep: Collection[int]) -> None:
    """Remove all checkpoints but those of the steps in ``keep``, and what a killed process had half written.

    What another machine writes goes only when it is old: that machine may be alive and merely cut off, its lock on the
    run lost.
    """
    kept = {f"step-{step}" for step in keep}
    half_written = [
        path
        for path in folder.glob(".step-*")
        if path.name.split(".", 2)[-1].startswith(f"{HOST}.") or _age_s(path) > _ABANDONED_S
    ]
    for path in [*(path for path in folder.glob("step-*") if path.name not in kept), *half_written]:
        shutil.rmtree(path, ignore_errors=True)


def _age_s(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:  # its writer has just finished
        return 0.0


def metrics_table(metrics: list[dict[str, float]]) -> pa.Table:
    """Rows as a table with a column for every key that any of them has, in order of first appearance."""
    columns = dict.fromkeys(key for row in metrics for key in row)
    return pa.Table.from_pylist([{column: row.get(column) for column in columns} for row in metrics])


def checkpoint_steps(folder: Path) -> list[int]:
    """Steps of the checkpoints in ``folder``, ascending."""
    if not folder.is_dir():
        return []
    return sorted(int(p.name.removeprefix("step-")) for p in folder.glob("step-*"))


def verify_checkpoint(path: Path) -> str | None:
    """What is wrong with a checkpoint, in words, or None when every file has its checksum."""
    try:
        manifest = json.loads((path / "checkpoint.json").read_text(encoding="utf-8"))
        if manifest["format"] != FORMAT:
            return f"format {manifest['format']} is not the one this version reads ({FORMAT})"
        for name in _FILES:
            if _sha256(path / name) != manifest["sha256"][name]:
                return f"{name} does not match its checksum"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    except (ValueError, KeyError, TypeError):
        return "checkpoint.json is damaged"
    return None


def load_checkpoint(path: Path, model: Transformer, optimizer: torch.optim.Optimizer) -> list[dict[str, float]]:
    """Put a verified checkpoint's state into ``model`` and ``optimizer``; returns the metrics so far.

    Raises:
        ArmillaryError: the checkpoint is damaged.
    """
    problem = verify_checkpoint(path)
    if problem:
        raise ArmillaryError(f"{path}: {problem}")
    device = next(model.parameters()).device
    model.load_state_dict(load_file(path / _FILES[0], device=str(device)))
    moments = load_file(path / _FILES[1])
    for name, parameter in model.named_parameters():
        state = {key: moments[f"{name}/{key}"] for key in ("step", "exp_avg", "exp_avg_sq")}
        # The fused optimizer keeps its step count beside the parameter. Copied: what is loaded is the mapped file.
        optimizer.state[parameter] = {key: value.to(device, copy=True) for key, value in state.items()}
    rows = pq.read_table(path / _FILES[2]).to_pylist()
    return [{k: v for k, v in row.items() if v is not None} for row in rows]


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
