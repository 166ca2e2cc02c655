"""Which folders the native backend opens: Hugging Face folders of models that our transformer computes."""

from __future__ import annotations

from pathlib import Path

from armillary.generate.backend import Backend
from armillary.generate.registry import BackendOptions, register
from armillary.recipe import UsageError


def _recognises(target: str) -> bool:
    folder = Path(target)
    if not all((folder / name).is_file() for name in ("config.json", "tokenizer.json")):
        return False
    from armillary.model import read_shape

    try:
        read_shape(folder)
    except UsageError:
        return False  # of another architecture
    return True


@register("native", _recognises, {"batch_size", "context", "device", "threads"})
def open_native(target: str, options: BackendOptions) -> Backend:
    """A published model, or another Hugging Face folder of a Llama, Qwen3 or Qwen3-MoE model."""
    import torch

    from armillary.generate.native import BATCH_SIZE, NativeBackend

    if options.threads is not None:
        torch.set_num_threads(options.threads)
    return NativeBackend.from_folder(
        Path(target), device=options.device, batch_size=options.batch_size or BATCH_SIZE, context=options.context
    )
