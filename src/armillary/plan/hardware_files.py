"""Reads the figures of accelerators from ``hardware/*.toml`` and from the files that ``armillary plan measure`` writes.

Figures are those of data sheets, with the source in a comment. The share that a training program reaches is in
``calibration.toml``.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from armillary.recipe import Document, UsageError, first_problem

_UNIT = 1e12


class Accelerator(Document):
    """Figures of one accelerator and its links.

    ``peak`` is in dense TFLOP/s by precision. ``link_gb_s`` (inside a node of ``node`` accelerators) and
    ``network_gb_s`` (between nodes) are GB/s of one accelerator in one direction. ``host`` multiplies the time of the
    host, ``clock`` the peak (a power limit). Files of ``armillary plan measure`` have ``shares``: constants of
    ``calibration.toml`` that were measured. ``host_serial`` is for a CPU, on which starting an operation and computing
    it take turns.
    """

    vendor: str
    generation: str = ""
    host: float = Field(default=1.0, ge=0)
    clock: float = Field(default=1.0, gt=0, le=1)
    aliases: tuple[str, ...] = ()
    memory_gb: float = Field(gt=0)
    bandwidth_gb_s: float = Field(gt=0)
    link_gb_s: float = Field(gt=0)
    node: int = Field(ge=1)
    network_gb_s: float = Field(gt=0)
    topology: Literal["switch", "mesh", "torus"] = "switch"
    link_latency_us: float = Field(ge=0)
    network_latency_us: float = Field(ge=0)
    power_w: float = Field(default=0.0, ge=0)
    peak: dict[str, float]
    shares: dict[str, float] = Field(default_factory=dict)
    host_serial: bool = False

    def flops(self, precision: str) -> float:
        """Peak FLOP/s in ``precision``, at the clock that the power limit allows.

        Raises:
            UsageError: the accelerator has no such precision.
        """
        if precision not in self.peak:
            raise UsageError(f"precision '{precision}': the accelerator has {', '.join(map(repr, self.peak))}")
        return self.peak[precision] * self.clock * _UNIT


@cache
def accelerators() -> dict[str, Accelerator]:
    """The accelerators of the package by the name of their file."""
    found = {}
    for entry in sorted(files("armillary.plan").joinpath("hardware").iterdir(), key=lambda path: path.name):
        if entry.name.endswith(".toml"):
            found[entry.name.removesuffix(".toml")] = Accelerator.model_validate(
                tomllib.loads(entry.read_text("utf-8"))
            )
    return found


def read_accelerator(path: Path) -> Accelerator:
    """The accelerator of a TOML file.

    Raises:
        UsageError: the file cannot be read, is not TOML, or a figure is missing or wrong.
    """
    try:
        return Accelerator.model_validate(tomllib.loads(path.read_text("utf-8")))
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"{path}: is not TOML: {error}") from error
    except ValidationError as error:
        raise UsageError(f"{path}: {first_problem(error)}") from error


def find_accelerator(name: str) -> tuple[str, Accelerator]:
    """The accelerator called ``name`` (``H100-80GB``, ``TPU v5p``, ``Ascend 910B``), and its file's name.

    Raises:
        UsageError: no accelerator has such a name; the message has the nearest ones.
    """
    known = accelerators()
    plain = re.sub(r"[\s_]+", "-", name.strip().lower())
    plain = re.sub(r"^(nvidia|google|amd|huawei|instinct)-", "", plain)
    names = {alias: key for key, one in known.items() for alias in (key, *one.aliases)}
    # More may follow a name, such as the memory; but a word that follows a name without a number, as "ascend", is the
    # model.
    ends = {alias: r"(?![0-9a-z])" if re.search(r"\d", alias) else r"(?!-?[0-9a-z])" for alias in names}
    matching = [alias for alias in names if plain == alias or re.match(re.escape(alias) + ends[alias], plain)]
    if not matching:
        near = difflib.get_close_matches(plain, names, n=3, cutoff=0.3)
        raise UsageError(
            f"accelerator '{name}' is unknown; "
            + (f"nearest: {', '.join(near)}" if near else f"known: {', '.join(known)}")
        )
    key = names[max(matching, key=len)]
    if key == "a100-80gb" and "40gb" in plain.replace("-", ""):
        key = "a100-40gb"
    return key, known[key]
