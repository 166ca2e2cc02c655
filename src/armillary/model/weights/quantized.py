"""Weight-only quantization in the layout of ``compressed-tensors`` (``pack-quantized``), which vLLM loads.

A matrix [n, k] is three tensors: ``weight_packed`` (int32 [n, k * bits / 32], the first number in the lowest bits, each
with an offset of 2^(bits - 1)), ``weight_scale`` [n, groups], and ``weight_shape`` (int64 [2]). Each number is
rounded to the nearest of 2^bits levels without a zero point; each group of ``group_size`` numbers in a row has its own
scale.

At 8 bits the largest number of a group sets its scale. At 4 bits the scale is the one of several with the least squared
error: a smaller one cuts the largest numbers off and rounds all others more finely. Channels that were scaled by
activations (``scaled.py``) keep the largest number, since it may be in a channel that matters.

Trade-off: the scales need no data, but errors are not passed on from column to column as in GPTQ. Before this step,
``scaled.py`` can scale channels by activations (AWQ).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from armillary.model.weights.shards import Planned
from armillary.recipe import UsageError

BITS = {"int8": 8, "int4": 4}
_GROUPS = (128, 64, 32)
_FORMAT = "pack-quantized"
# Scales that are tried at 4 bits, as shares of the one that the largest number needs.
_SHARES = tuple(1 - 0.025 * i for i in range(17))


def group_size(widths: Sequence[int], bits: int) -> int | None:
    """The largest group that divides all ``widths``; None: one scale per row.

    Raises:
        UsageError: a row does not fill a whole number of int32 values.
    """
    narrow = [width for width in widths if width % (32 // bits)]
    if narrow:
        raise UsageError(f"quantize: rows of {narrow[0]} numbers do not fill whole int32 numbers at {bits} bits")
    return next((size for size in _GROUPS if all(width % size == 0 for width in widths)), None)


def settings(bits: int, size: int | None, ignored: list[str]) -> dict[str, Any]:
    """The ``quantization_config`` of a configuration; ``ignored`` are the modules that are not quantized."""
    weights = {
        "num_bits": bits,
        "type": "int",
        "symmetric": True,
        "strategy": "channel" if size is None else "group",
        "group_size": size,
        "dynamic": False,
        "actorder": None,
        "block_structure": None,
        "observer": "minmax",
        "observer_kwargs": {},
    }
    group = {"targets": ["Linear"], "weights": weights, "input_activations": None, "output_activations": None}
    return {
        "quant_method": "compressed-tensors",
        "format": _FORMAT,
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": ignored,
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
    }


# The steps [n, groups] of a matrix [n, k] for bits and the size of a group (None: one per row).
Steps = Callable[[Tensor, int, int | None], Tensor]


def packed(tensor: Planned, bits: int, size: int | None, steps: Steps) -> list[Planned]:
    """The three tensors of the matrix ``tensor``, with the scales that ``steps`` chooses, in its type."""
    rows, width = tensor.size
    stem, dtype = tensor.name.removesuffix("weight"), tensor.dtype

    def scale() -> Tensor:
        return steps(tensor.make().float(), bits, size).to(dtype)

    def numbers() -> Tensor:
        values = tensor.make().float()
        chosen = steps(values, bits, size).to(dtype).float()  # those that a reader has
        return pack(_rounded(values, chosen, bits), bits)

    return [
        Planned(f"{stem}weight_packed", (rows, width * bits // 32), torch.int32, numbers),
        Planned(f"{stem}weight_scale", (rows, width // (size or width)), dtype, scale),
        Planned(f"{stem}weight_shape", (2,), torch.int64, lambda: torch.tensor([rows, width])),
    ]


def rounded(values: Tensor, bits: int, size: int | None) -> Tensor:
    """The matrix ``values`` as a reader has it after packing with the ``widest`` steps."""
    steps = widest(values, bits, size)
    grouped = _rounded(values, steps, bits).view(*steps.shape, -1) * steps[..., None]
    return grouped.view(values.shape)


def widest(values: Tensor, bits: int, size: int | None) -> Tensor:
    """Steps that reach the largest number of each group."""
    grouped = values.view(values.shape[0], -1, size or values.shape[1])
    steps: Tensor = grouped.abs().amax(-1) / (2 ** (bits - 1) - 0.5)
    return steps.clamp(min=torch.finfo(torch.float16).tiny)


def searched(values: Tensor, bits: int, size: int | None) -> Tensor:
    """For each group, the step with the least squared error among the ``_SHARES`` of the widest step."""
    grouped = values.view(values.shape[0], -1, size or values.shape[1])
    best = full = widest(values, bits, size)
    least = torch.full_like(full, torch.inf)
    for share in _SHARES:
        steps = full * share
        restored = _rounded(values, steps, bits).view_as(grouped) * steps[..., None]
        error = (restored - grouped).square().sum(-1)
        best, least = torch.where(error < least, steps, best), torch.minimum(error, least)
    return best.clamp(min=torch.finfo(torch.float16).tiny)


def _rounded(values: Tensor, scales: Tensor, bits: int) -> Tensor:
    grouped = values.view(*scales.shape, -1) / scales[..., None]
    most = 2 ** (bits - 1)
    return grouped.round().clamp(-most, most - 1).view(values.shape).to(torch.int32)


def pack(values: Tensor, bits: int) -> Tensor:
    """Integers [n, k] of ``bits`` bits in int32 numbers [n, k * bits / 32]."""
    count = 32 // bits
    unsigned = (values + 2 ** (bits - 1)).view(values.shape[0], -1, count).long()
    joined = (unsigned << (bits * torch.arange(count))).sum(-1)
    return torch.where(joined >= 2**31, joined - 2**32, joined).to(torch.int32)


def unpack(numbers: Tensor, bits: int) -> Tensor:
    """The inverse of ``pack``."""
    shifted = (numbers.long()[..., None] >> (bits * torch.arange(32 // bits))) & (2**bits - 1)
    values: Tensor = shifted - 2 ** (bits - 1)
    return values.flatten(1)


def bits_of(config: dict[str, Any]) -> int | None:
    """The bits of a ``quantization_config`` that is read here; None if it is another."""
    try:
        (group,) = config["config_groups"].values()
        weights = group["weights"]
        plain = (
            config.get("quant_method") == "compressed-tensors"
            and config.get("format") == _FORMAT
            and group.get("input_activations") is None
            and weights["type"] == "int"
            and weights["symmetric"] is True
            and weights["strategy"] in ("channel", "group")
            and weights.get("actorder") is None
        )
        bits = weights["num_bits"]
    except (AttributeError, KeyError, TypeError, ValueError):
        return None
    return bits if plain and bits in BITS.values() else None


def restore(read: Callable[[str], Tensor], stem: str, bits: int, size: tuple[int, ...]) -> Tensor:
    """The matrix of ``size`` in fp32 from its packed tensors, which ``read`` reads by name."""
    values = unpack(read(f"{stem}weight_packed"), bits)[:, : size[1]]
    scales = read(f"{stem}weight_scale").float()
    grouped = values.view(*scales.shape, -1).float() * scales[..., None]
    return grouped.view(size)
