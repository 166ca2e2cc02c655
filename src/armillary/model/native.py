"""C kernels on a CPU: compiled on first use, cached, and called through ctypes.

Each PyTorch operator makes a full pass over memory, and PyTorch's CPU attention is slow at the contexts of small
models. The kernels of a training step (``kernels.c``) take one second to compile, once per machine, and need only a C
compiler. Without a compiler, or for inputs that the kernels do not support, ``operators`` computes the same with
PyTorch. Generation has its own kernels, compiled and cached the same way (``compiled``).

Trade-offs: kernels are compiled for the current processor (``-march=native``), so two kinds of machine may round
differently in the last digit, as in every matrix product. The cache key is a hash of source, compiler, flags and
processor, so a mixed cluster can share a home folder.

A library is code. The cache folder must be writable by this user only, and a library is loaded only if its content has
the hash in its name; a torn or replaced one is built again. Without such a folder, each process builds its own library.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import shutil
import stat
import subprocess
import tempfile
import warnings
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from armillary.files import file_sha256, sync

# Without the assumption that every number is finite, because divergence must stay visible.
_FLAGS = (
    *("-std=gnu11", "-O3", "-march=native", "-shared", "-fPIC", "-pthread", "-ffp-contract=fast"),
    *("-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros"),
)
# A training step may reorder sums.
_TRAINING = ("-fassociative-math",)
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # as malloc.h has them
_DEFINES = {torch.float32: (), torch.bfloat16: ("-DBF16",)}


@cache
def kernels(dtype: torch.dtype) -> ctypes.CDLL | None:
    """The library for activations of ``dtype``; None if the dtype is not supported or there is no compiler."""
    if dtype not in _DEFINES:
        return None
    source = files("armillary.model").joinpath("kernels.c").read_bytes()
    return compiled(source, (*_TRAINING, *_DEFINES[dtype]), "training on the CPU uses", "twice")


def compiled(source: bytes, flags: tuple[str, ...], use: str, longer: str) -> ctypes.CDLL | None:
    """The library of a C ``source``, which may include ``vectors.h``; None if switched off or it cannot be built.

    ``use`` and ``longer`` complete the warning about slower PyTorch operators: "generation uses", "ten times".
    """
    if os.environ.get("ARMILLARY_NATIVE") == "0":
        return None
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        warnings.warn(
            f"no C compiler was found (cc, or the one in CC): {use} PyTorch's operators, which take up to {longer} as "
            "long; install gcc or clang",
            stacklevel=3,
        )
        return None
    try:
        return _library(compiler, source, flags)
    except (OSError, subprocess.CalledProcessError) as error:
        detail = error.stderr.strip() if isinstance(error, subprocess.CalledProcessError) else str(error)
        warnings.warn(
            f"the CPU kernels could not be compiled with {compiler}: {use} PyTorch's operators, which take up to "
            f"{longer} as long: {detail}",
            stacklevel=3,
        )
        return None


def _library(compiler: str, source: bytes, flags: tuple[str, ...]) -> ctypes.CDLL:
    """The loaded library: from the cache, built into the cache, or built for this process alone."""
    header = files("armillary.model").joinpath("vectors.h").read_bytes()
    version = subprocess.run([compiler, "--version"], capture_output=True, check=True, text=True).stdout
    everything = repr((source, header, version, _FLAGS, flags, _processor()))
    key = hashlib.sha256(everything.encode()).hexdigest()[:16]
    command = [compiler, *_FLAGS, *flags]
    # Without a usable cache the library is compiled again, which takes one second.
    with contextlib.suppress(OSError, RuntimeError, subprocess.CalledProcessError):  # RuntimeError: no home folder
        folder = _private_folder()
        for path in folder.glob(f"kernels-{key}-*.so"):
            if _intact(path):
                return ctypes.CDLL(str(path))
            path.unlink()
        with tempfile.TemporaryDirectory(dir=folder) as aside:
            built = _build(command, source, header, Path(aside))
            # The file name holds the content's hash, so file and hash appear atomically and always match.
            path = folder / f"kernels-{key}-{file_sha256(built)}.so"
            built.rename(path)
        return ctypes.CDLL(str(path))
    with tempfile.TemporaryDirectory(prefix="armillary-") as aside:
        return ctypes.CDLL(str(_build(command, source, header, Path(aside))))  # stays loaded after its file is deleted


def _build(command: list[str], source: bytes, header: bytes, folder: Path) -> Path:
    """Compile ``source`` in ``folder``, flush the library and return its path."""
    (folder / "kernels.c").write_bytes(source)
    (folder / "vectors.h").write_bytes(header)
    library = folder / "kernels.so"
    command = [*command, str(folder / "kernels.c"), "-o", str(library), "-lm"]
    subprocess.run(command, capture_output=True, check=True, text=True)
    library.chmod(0o500)
    sync(library)
    return library


def _private_folder() -> Path:
    """The cache folder, created where needed, that no other user can write to.

    Raises:
        PermissionError: another user owns it, or can replace it or a folder above it.
        OSError: it can be neither created nor read.
    """
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").resolve() / "armillary"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder = folder.resolve()
    about, user = folder.stat(), os.geteuid()
    if about.st_uid != user:
        raise PermissionError(f"{folder}: belongs to another user")
    for above in folder.parents:
        place = above.stat()
        if place.st_uid not in (0, user) or (place.st_mode & 0o022 and not place.st_mode & stat.S_ISVTX):
            raise PermissionError(f"{above}: another user can replace its files")
    if about.st_mode & 0o077:
        if about.st_mode & 0o022:  # another user may have put a library here
            for path in folder.glob("kernels-*.so"):
                path.unlink()
        folder.chmod(0o700)
    return folder


def _intact(path: Path) -> bool:
    """Whether ``path`` is a regular file of this user with the content that its name states."""
    about = path.lstat()
    return (
        stat.S_ISREG(about.st_mode)
        and about.st_uid == os.geteuid()
        and not about.st_mode & 0o022
        and path.stem.rpartition("-")[2] == file_sha256(path)
    )


def _processor() -> str:
    """The processor features that ``-march=native`` depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return " ".join(os.uname())
    known = ("model name", "flags", "Features", "CPU part")
    return "\n".join(sorted({line for line in lines if line.startswith(known)}))


def keep_freed_memory() -> None:
    """Make this process reuse freed memory; for processes that only train on the CPU.

    glibc returns large blocks to the system at once, so every training step would allocate the same blocks again and
    pay for page faults. Other C libraries are not changed.
    """
    tune = getattr(ctypes.CDLL(None), "mallopt", None)
    if tune is not None:
        tune(_M_MMAP_THRESHOLD, 2**30)
        tune(_M_TRIM_THRESHOLD, 2**31 - 1)


def prefer_large_pages() -> None:
    """Make child processes request large pages (2 MiB) for PyTorch's tensors on the host.

    PyTorch reads the setting at its first allocation, too early for a process to set it for itself. Linux grants such
    pages if transparent huge pages are set to "madvise", as on most systems.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def argument(value: Any) -> Any:
    """Convert a value to a kernel argument: the address of a dense tensor, NULL for None, numbers unchanged."""
    if value is None:
        return None
    if isinstance(value, Tensor):
        assert value.is_contiguous()
        return ctypes.c_void_p(value.data_ptr())
    return ctypes.c_float(value) if isinstance(value, float) else ctypes.c_long(value)
