"""The C kernels of a training step on a CPU: compiled on first use, kept, and called through ctypes.

PyTorch's own operators pass over the memory once each, and its CPU attention is slow at the contexts of small models;
the kernels (``kernels.c``) cost one second of compiling once per machine and need nothing but a C compiler. Where there
is none, or an operator's input is not what they are for, ``operators`` computes the same with PyTorch.

Trade-offs: compiled for the processor at hand (``-march=native``), so two kinds of machine may round differently in
the last digit, as they do in every matrix product; a library is found again by the hash of source, compiler, flags and
processor, so a shared home folder serves a mixed cluster.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
import warnings
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# As fast as associativity allows, without the assumption that every number is finite: divergence has to show.
_FLAGS = (
    *("-std=gnu11", "-O3", "-march=native", "-shared", "-fPIC", "-ffp-contract=fast"),
    *("-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros", "-fassociative-math"),
)
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # as malloc.h has them
_DEFINES = {torch.float32: (), torch.bfloat16: ("-DBF16",)}


@cache
def kernels(dtype: torch.dtype) -> ctypes.CDLL | None:
    """The library for activations of ``dtype``; None where there is none, or no compiler to make it."""
    if dtype not in _DEFINES or os.environ.get("ARMILLARY_NATIVE") == "0":
        return None
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        warnings.warn(
            "no C compiler was found (cc, or what CC names): training on the CPU uses PyTorch's operators, which take "
            "up to twice as long; install gcc or clang",
            stacklevel=2,
        )
        return None
    try:
        return ctypes.CDLL(str(_compiled(compiler, _DEFINES[dtype])))
    except (OSError, subprocess.CalledProcessError) as error:
        detail = error.stderr.strip() if isinstance(error, subprocess.CalledProcessError) else str(error)
        warnings.warn(
            f"the CPU kernels could not be compiled with {compiler}, so PyTorch's operators are used, which take up "
            f"to twice as long: {detail}",
            stacklevel=2,
        )
        return None


def _compiled(compiler: str, defines: tuple[str, ...]) -> Path:
    source = files("armillary.model").joinpath("kernels.c").read_bytes()
    version = subprocess.run([compiler, "--version"], capture_output=True, check=True, text=True).stdout
    key = hashlib.sha256(repr((source, version, _FLAGS, defines, _processor())).encode()).hexdigest()[:16]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "armillary"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(folder)
    except OSError:  # no home to write to: compiled anew by each process, in a folder that only it can write to
        folder = Path(tempfile.mkdtemp(prefix="armillary-"))
    library = folder / f"kernels-{key}.so"
    if not library.exists():
        with tempfile.TemporaryDirectory(dir=folder) as aside:
            (Path(aside) / "kernels.c").write_bytes(source)
            command = [compiler, *_FLAGS, *defines, f"{aside}/kernels.c", "-o", f"{aside}/kernels.so", "-lm"]
            subprocess.run(command, capture_output=True, check=True, text=True)
            (Path(aside) / "kernels.so").rename(library)
    return library


def _processor() -> str:
    """What ``-march=native`` looks at."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return " ".join(os.uname())
    known = ("model name", "flags", "Features", "CPU part")
    return "\n".join(sorted({line for line in lines if line.startswith(known)}))


def keep_freed_memory() -> None:
    """Have this process keep what is freed for what it allocates next, as one does that trains on the CPU and no more.

    glibc gives large blocks back to the system at once, and every step of a training loop would ask for the same ones
    again, at the price of page faults. Other C libraries are left as they are.
    """
    tune = getattr(ctypes.CDLL(None), "mallopt", None)
    if tune is not None:
        tune(_M_MMAP_THRESHOLD, 2**30)
        tune(_M_TRIM_THRESHOLD, 2**31 - 1)


def prefer_large_pages() -> None:
    """Have processes that are started from here on ask for large pages (2 MiB) under PyTorch's tensors on the host.

    PyTorch looks at it with its first allocation, too early for the process itself to say so. Linux gives such pages
    where it is told to on request ("madvise"), as most systems are.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def argument(value: Any) -> Any:
    """A value as the kernels take it: the address of a dense tensor, NULL for None, numbers as they are."""
    if value is None:
        return None
    if isinstance(value, Tensor):
        assert value.is_contiguous()
        return ctypes.c_void_p(value.data_ptr())
    return ctypes.c_float(value) if isinstance(value, float) else ctypes.c_long(value)
