"""Folders that the native backend opens: runs, and folders of models that our transformer supports."""

from __future__ import annotations

from pathlib import Path

from armillary.generate.backend import Backend
from armillary.generate.registry import BackendOptions, register
from armillary.generate.runs import is_run, open_run
from armillary.recipe import UsageError


def _recognises(target: str) -> bool:
    folder = Path(target)
    if is_run(folder):
        return True
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        return False
    if (folder / "armillary.json").is_file():
        return True
    if not (folder / "config.json").is_file():
        return False
    from armillary.model import is_telechat2, read_shape

    if is_telechat2(folder):
        return True
    try:
        read_shape(folder)
    except UsageError:
        return False  # another architecture
    return True


@register("native", _recognises, {"batch_size", "context", "device", "threads", "tokenizer"})
def open_native(target: str, options: BackendOptions) -> Backend:
    """A published model, another folder of a model that our transformer supports, or a finished run."""
    folder = Path(target)
    if options.tokenizer is not None and not is_run(folder):
        raise UsageError(f"{target}: has its own tokenizer; leave out --tokenizer, which is for runs and servers")
    import torch

    from armillary.generate.native import BATCH_SIZE, NativeBackend

    if options.threads is not None:
        torch.set_num_threads(options.threads)
    if is_run(folder):
        return open_run(folder, options)
    return NativeBackend.from_folder(
        folder, device=options.device, batch_size=options.batch_size or BATCH_SIZE, context=options.context
    )
