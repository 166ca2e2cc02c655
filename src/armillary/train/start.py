"""The weights that a run starts from: found, compared with their hash, and opened for reading by slices.

A run may start from another run's final weights, from a checkpoint, or from any safetensors file that has the tensors
of the model under their own names. The hash is compared before any weight is read. The id of the run contains this
hash, so it identifies the weights. Weights of any floating-point type become fp32.

Trade-off: rank 0 alone reads the whole file for its hash. The other ranks trust the shared storage and read their part.
"""

from __future__ import annotations

from pathlib import Path

import torch

from armillary.files import file_sha256
from armillary.model import Transformer
from armillary.recipe import WEIGHTS, ArmillaryError, DamagedFileError, ForeignFileError, ModelShape, Start, read_result
from armillary.train.checkpoint import CheckpointReader, PieceReader, verify_checkpoint

_MANIFEST = "checkpoint.json"
_FLOATS = ("F64", "F32", "BF16", "F16")


def start_from(path: Path) -> Start:
    """The start from a safetensors file, the folder of a finished run, or the folder of a checkpoint.

    Raises:
        DamagedFileError, ForeignFileError, ArmillaryError: as ``verify_start``.
    """
    path = path.resolve()
    result = read_result(path) if path.is_dir() else None
    return Start(run=result.run if result is not None else None, weights=str(path), sha256=_digest(_within(path)))


def verify_start(start: Start, runs: Path) -> None:
    """Compare the weights with ``start.sha256``; ``runs`` is the folder with runs by id.

    Raises:
        DamagedFileError: the file, or a file of the checkpoint, was changed.
        ForeignFileError: the path is neither a weight file nor a checkpoint, or holds another run.
        ArmillaryError: the path does not exist, the run is not done, or the file cannot be read.
    """
    path = _place(start, runs)
    found = _digest(path)
    if found != start.sha256:
        raise DamagedFileError(
            f"{path}: SHA-256 is {found}, but start.sha256 is {start.sha256}: the weights were changed or replaced; "
            "restore them, or set start.sha256 to that of the new weights, which makes a different run"
        )
    if path.is_dir():
        verify_checkpoint(path)


def open_start(start: Start, runs: Path, shape: ModelShape) -> PieceReader:
    """A reader of the weights, which must have the names, sizes and types of a model of ``shape``.

    Raises:
        ForeignFileError: not a safetensors file, or one of another model.
        ArmillaryError: as ``verify_start``.
    """
    path = _place(start, runs)
    try:
        reader = CheckpointReader(path) if path.is_dir() else PieceReader.of(path)
    except DamagedFileError as error:  # its hash matches, so it was never a file of this program
        raise ForeignFileError(
            f"{path}: cannot be read as weights; a start is a safetensors file or the folder of a checkpoint ({error})"
        ) from error
    with torch.device("meta"):
        tensors = Transformer(shape).state_dict()
    what = reader.difference({name: tuple(tensor.shape) for name, tensor in tensors.items()})
    if what is None:
        kinds = {name: reader.kind(name) for name in tensors}
        other = next((name for name, kind in kinds.items() if kind not in _FLOATS), None)
        what = None if other is None else f"'{other}' is {kinds[other]} there and must be floating point"
    if what is not None:
        raise ForeignFileError(
            f"{path}: cannot start this run, because it is a different model: {what}; give weights of the same shape, "
            "or give the run the shape of the weights"
        )
    return reader


def _place(start: Start, runs: Path) -> Path:
    """The safetensors file or the checkpoint's folder of a start."""
    if start.weights is not None:
        return _within(Path(start.weights))
    folder = runs / str(start.run)
    if not folder.is_dir():
        raise ArmillaryError(
            f"{folder}: not found, but start.run refers to it; copy the folder of run {start.run} there, or give the "
            "path of its weights as start.weights"
        )
    return _within(folder, start.run)


def _within(path: Path, run: str | None = None) -> Path:
    """``path`` itself if it is a file or a checkpoint; for the folder of a finished run, its final weights."""
    if path.is_file() or (path / _MANIFEST).is_file():
        return path
    if not path.exists():
        raise ArmillaryError(f"{path}: not found, but the run starts from it; restore the file or give another start")
    if not path.is_dir():
        raise ForeignFileError(f"{path}: neither a file nor a folder; a start is a safetensors file or a checkpoint")
    if run is None and not (path / WEIGHTS).exists() and not (path / "spec.json").exists():
        raise ForeignFileError(
            f"{path}: a folder without {_MANIFEST} or {WEIGHTS}; give a safetensors file, the folder of a checkpoint "
            "(checkpoints/step-N) or the folder of a finished run"
        )
    if read_result(path, run) is None and not (path / WEIGHTS).exists():
        raise ArmillaryError(
            f"{path}: the run is not finished, but another run starts from its final weights; finish it first, "
            "or give one of its checkpoints (checkpoints/step-N) as start.weights"
        )
    if not (path / WEIGHTS).is_file():
        raise DamagedFileError(f"{path / WEIGHTS}: is missing, but a run starts from it; restore it from a copy")
    return path / WEIGHTS


def _digest(path: Path) -> str:
    file = path / _MANIFEST if path.is_dir() else path
    try:
        return file_sha256(file)
    except OSError as error:
        raise ArmillaryError(f"{file}: cannot be read ({error.strerror}), but the run starts from it") from error
