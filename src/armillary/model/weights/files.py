"""Files and folders that appear whole or not at all, and the checks that all weight formats share.

Both are written under a hidden name in the same folder, flushed and then renamed. A file replaces an older one
atomically. So does a folder if the kernel can exchange two names (Linux, most file systems). Otherwise the older folder
is moved aside first. A kill at that moment leaves no folder under the name, but both folders complete beside it.
"""

from __future__ import annotations

import ctypes
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from armillary.files import aside, sync
from armillary.recipe import ArmillaryError, UsageError

AT_FDCWD = -100  # linux/fcntl.h: paths are relative to the working directory
# The files that a model folder may hold; a folder with any other file is refused and not replaced.
MODEL_FILES = frozenset(
    {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "special_tokens_map.json",
        "added_tokens.json",
        "vocab.json",
        "merges.txt",
        "tokenizer.model",
        "adapter_config.json",
        "adapter_model.safetensors",
        "README.md",
        "lineage.json",
    }
)

RENAME_EXCHANGE = 2  # linux/fs.h


def save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Write a safetensors file that appears under ``path`` only when it is complete and flushed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    hidden = aside(path)
    try:
        hidden.touch()
        mode = hidden.stat().st_mode
        save_file(
            {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()},
            hidden,
            metadata={"format": "pt"},
        )
        hidden.chmod(mode)  # safetensors makes files that only their owner may read
        sync(hidden)
        hidden.replace(path)
    finally:
        hidden.unlink(missing_ok=True)
    sync(path.parent)


@contextmanager
def replace_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder to fill; when the block ends without an error, it atomically replaces ``folder``.

    If the block raises, or the process dies in it, ``folder`` is not changed.

    Raises:
        UsageError: ``folder`` is a file, or holds a file that a model folder does not have (it would be deleted).
    """
    folder = folder.resolve()
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder}: is a file; give a folder that is new or contains an earlier export")
    foreign = sorted({entry.name for entry in folder.iterdir()} - MODEL_FILES) if folder.exists() else []
    if foreign:
        raise UsageError(
            f"{folder}: contains '{foreign[0]}', which is not part of an earlier export and would be deleted; "
            "give a folder that is new, empty or contains an earlier export"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    new, older = folder.with_name(f".{folder.name}.new"), folder.with_name(f".{folder.name}.old")
    shutil.rmtree(new, ignore_errors=True)  # left over from a process that was killed
    new.mkdir()
    try:
        yield new
        for path in new.iterdir():
            sync(path)
        sync(new)
        if not folder.exists():
            new.rename(folder)
        elif not _exchange(new, folder):
            shutil.rmtree(older, ignore_errors=True)
            folder.rename(older)
            new.rename(folder)
        sync(folder.parent)
        shutil.rmtree(older, ignore_errors=True)
    finally:
        # after an exchange this is the older folder
        shutil.rmtree(new, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two names atomically; returns False if the system does not support it."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    if rename is None:
        return False
    done: int = rename(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE)
    return done == 0


def check_tensors(path: Path, found: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]]) -> None:
    """Compare the names and shapes of a file's tensors with those of the model.

    Raises:
        ArmillaryError: tensors are missing, unexpected or of another shape; the message names them.
    """
    problems = [
        f"{name} is {list(found[name])} and should be {list(size)}"
        for name, size in wanted.items()
        if name in found and found[name] != size
    ]
    problems += [f"missing {name}" for name in wanted if name not in found]
    problems += [f"unexpected {name}" for name in found if name not in wanted]
    if problems:
        shown = "; ".join(problems[:8]) + (f"; and {len(problems) - 8} more" if len(problems) > 8 else "")
        raise ArmillaryError(f"{path}: the weights do not fit this model shape: {shown}")
