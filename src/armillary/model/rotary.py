"""Rotary positions: the angles by which the pairs of a head are turned, and their scaling for longer text.

Angles are those of Su et al. 2021 (arXiv 2104.09864, equation 15). Scaling (``RopeScaling``) gives the same fp32 bits
as Hugging Face ``transformers`` under the same name, so weights and their configuration can be imported and exported.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from armillary.recipe import ModelShape


def rotary_tables(shape: ModelShape, length: int, sequence: int = 0) -> tuple[Tensor, Tensor]:
    """Cosines [length, head_dim] and sines [length, head_dim / 2] of the angles, times the attention factor.

    fp32, on the CPU. They turn both queries and keys, so logits are scaled by the square of the factor. ``sequence`` is
    the length of the whole sequence, for a scaling that depends on it; 0: within the length of the first training.
    """
    shape = shape.at_length(sequence)
    positions = torch.arange(length, dtype=torch.float32, device="cpu")
    angles = torch.outer(positions, rotary_frequencies(shape))
    cos, sin = torch.cat((angles, angles), dim=-1).cos(), angles.sin()
    factor = 1.0 if shape.rope_scaling is None else shape.rope_scaling.attention
    return (cos, sin) if factor == 1.0 else (cos * factor, sin * factor)


def rotary_frequencies(shape: ModelShape) -> Tensor:
    """Radians per position of each pair [head_dim / 2], fp32, on the CPU; 0 for the pairs that are not turned.

    The first ``rotary_dim / 2`` pairs are turned, as those of a head of ``rotary_dim`` dimensions would be.

    ``linear`` divides all by the factor (Chen et al. 2023, arXiv 2306.15595, section 2.3). ``ntk`` raises the base so
    that the lowest is divided by it and the highest stays (Peng et al. 2023, arXiv 2309.00071, section 3.1). ``yarn``
    divides those that turn less than ``beta_slow`` times within the original length and keeps those that turn more
    than ``beta_fast`` times, with a ramp between them over the pairs (there, section 3.2). ``llama3`` does likewise,
    with a ramp over the turns (as the configuration of Llama 3.1 has it).
    """
    still = torch.zeros((shape.head_dim - shape.rotary_dim) // 2, dtype=torch.float32, device="cpu")
    return torch.cat((_turned(shape), still))


def _turned(shape: ModelShape) -> Tensor:
    dim, base, scaling = shape.rotary_dim, shape.rope_theta, shape.rope_scaling
    if scaling is not None and scaling.kind == "ntk":
        base = ntk_base(shape)
    exponents = torch.arange(0, dim, 2, dtype=torch.float32, device="cpu") / dim
    frequencies = 1.0 / base**exponents
    if scaling is None or scaling.kind == "ntk":
        return frequencies
    slow = frequencies / scaling.factor
    if scaling.kind == "linear":
        return slow
    assert scaling.original_length is not None
    if scaling.kind == "yarn":
        # index of the pair that turns this many times within the original length
        first, last = (
            dim * math.log(scaling.original_length / (turns * 2 * math.pi)) / (2 * math.log(base))
            for turns in (scaling.beta_fast, scaling.beta_slow)
        )
        low, high = max(math.floor(first), 0), min(math.ceil(last), dim - 1)
        width = high - low if high != low else 0.001
        stretched = ((torch.arange(dim // 2, dtype=torch.float32, device="cpu") - low) / width).clamp(0, 1)
        return slow * stretched + frequencies * (1 - stretched)
    turns = scaling.original_length * frequencies / (2 * math.pi)
    fast = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    fast = fast.clamp(0, 1)
    return slow * (1 - fast) + frequencies * fast


def ntk_base(shape: ModelShape) -> float:
    """The base that replaces ``rope_theta`` under NTK-aware scaling."""
    assert shape.rope_scaling is not None
    return shape.rope_theta * float(shape.rope_scaling.factor ** (shape.rotary_dim / (shape.rotary_dim - 2)))
