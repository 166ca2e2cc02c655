"""The cache of compiled kernels: what is damaged is built again, what another user could have put there never runs."""

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from armillary.files import file_sha256
from armillary.model import native

SOURCE = b"int attention(void) { return 7; }"
COMPILER = shutil.which(os.environ.get("CC", "cc"))
pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C compiler on this machine")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The cache folder, for a source of one line in place of the kernels."""
    tmp_path.chmod(0o700)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "armillary"


def works(library) -> bool:
    """Whether it is the library of that source."""
    return library.attention() == 7


def only(cache: Path) -> Path:
    (path,) = cache.glob("kernels-*.so")
    return path


def test_a_library_is_built_once_in_a_private_folder(cache):
    assert works(native._library(COMPILER, SOURCE, ()))
    first = only(cache).stat()
    assert cache.stat().st_mode & 0o777 == 0o700 and first.st_mode & 0o777 == 0o500
    assert works(native._library(COMPILER, SOURCE, ())) and only(cache).stat().st_ino == first.st_ino
    assert works(native._library(COMPILER, SOURCE, ("-DBF16",))) and len(list(cache.glob("*"))) == 2


@pytest.mark.parametrize("length", [0, 1, 63, 4096, 0.5, -1])
def test_a_truncated_library_is_built_again(cache, length):
    path = _library_path(cache)
    whole = path.read_bytes()
    _rewrite(path, whole[: int(length * len(whole)) if isinstance(length, float) else length])
    assert works(native._library(COMPILER, SOURCE, ()))
    assert native._intact(only(cache))


@pytest.mark.parametrize("place", [0, 100, -1])
def test_a_flipped_bit_is_noticed(cache, place):
    path = _library_path(cache)
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    _rewrite(path, bytes(data))
    assert works(native._library(COMPILER, SOURCE, ())) and native._intact(only(cache))


def test_a_process_with_a_truncated_library_lives(cache, monkeypatch):
    """In a subprocess, because loading a truncated library kills the process with SIGBUS."""
    monkeypatch.undo()
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache.parent)}
    ask = "import torch; from armillary.model.native import kernels; print(kernels(torch.float32) is not None)"
    for _ in range(2):
        said = subprocess.run([sys.executable, "-c", ask], check=False, env=environment, capture_output=True, text=True)
        assert (said.returncode, said.stdout) == (0, "True\n"), said.stderr
        for path in cache.glob("kernels-*.so"):
            _rewrite(path, path.read_bytes()[:-4096])


def test_what_others_could_write_never_runs(cache, tmp_path):
    path, marker = _library_path(cache), tmp_path / "marker"
    code = f'#include <stdio.h>\n__attribute__((constructor)) void f(void) {{ fclose(fopen("{marker}", "w")); }}'
    (tmp_path / "planted").mkdir()
    planted = native._build([COMPILER, *native._FLAGS], code.encode(), b"", tmp_path / "planted")
    path.unlink()
    shutil.copy(planted, cache / f"{path.name.rpartition('-')[0]}-{file_sha256(planted)}.so")
    cache.chmod(0o777)
    assert works(native._library(COMPILER, SOURCE, ())) and not marker.exists()
    assert (
        cache.stat().st_mode & 0o777 == 0o700 and works(native._library(COMPILER, SOURCE, ())) and not marker.exists()
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")
@pytest.mark.parametrize("what", ["folder", "file"])
def test_what_belongs_to_another_user_never_runs(cache, what):
    path = _library_path(cache)
    os.chown(cache if what == "folder" else path, 65534, 65534)
    before = path.stat().st_ino
    assert works(native._library(COMPILER, SOURCE, ()))
    if what == "folder":  # left alone; the process has a library to itself
        assert path.stat().st_ino == before and list(cache.iterdir()) == [path]
    else:
        assert native._intact(only(cache))


def test_a_folder_above_that_others_can_write_to_is_not_used(cache):
    cache.parent.mkdir(mode=0o777)
    cache.parent.chmod(0o777)
    with pytest.raises(PermissionError, match="another user can replace"):
        native._private_folder()
    assert works(native._library(COMPILER, SOURCE, ()))
    assert not list(cache.glob("*"))


def test_without_a_cache_each_process_builds_for_itself(cache):
    cache.parent.write_text("no folder")
    assert works(native._library(COMPILER, SOURCE, ()))


def test_many_build_at_once(cache):
    with ThreadPoolExecutor(4) as pool:
        assert all(map(works, pool.map(lambda _: native._library(COMPILER, SOURCE, ()), range(4))))
    assert all(map(native._intact, cache.glob("*")))


def test_a_compiler_that_fails_is_a_warning(cache, monkeypatch):
    native.kernels.cache_clear()
    monkeypatch.setattr(native, "_FLAGS", ("--no-such-flag",))
    with pytest.warns(UserWarning, match="could not be compiled"):
        assert native.kernels(torch.float32) is None
    native.kernels.cache_clear()


def _library_path(cache: Path) -> Path:
    """The library in the cache, once it is built."""
    native._library(COMPILER, SOURCE, ())
    return only(cache)


def _rewrite(path: Path, data: bytes) -> None:
    path.unlink()  # a new file: this process has the old one mapped
    path.write_bytes(data)
    path.chmod(0o500)
