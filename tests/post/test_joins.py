"""Joins and parts of files: the right lines in the right order, whole or not at all, in bounded memory."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from armillary.post.joins import in_random_order, lines_of, temporary_table, write_lines
from armillary.recipe import ArmillaryError, UsageError


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source.jsonl"
    path.write_bytes(b"".join(b'{"n": %d}\n' % (number % 40) for number in range(50)) + b'{"n": "torn"}')
    return path


def test_a_random_order_has_each_line_once_and_the_same_beginning(source: Path) -> None:
    lines = source.read_bytes().splitlines(keepends=True)
    wanted = sorted(lines, key=lambda line: hashlib.sha256(line).digest())
    whole = list(in_random_order(source, 1000))
    assert [line.rstrip() for line in whole] == [line.rstrip() for line in wanted]
    assert all(line.endswith(b"\n") for line in whole)  # the last line of the source ends without one
    for size in (1, 7, 50):
        assert list(in_random_order(source, size)) == whole[:size]


def test_parts_of_a_file_join_to_the_file(source: Path, tmp_path: Path) -> None:
    for cut in (0, 1, 20, 51, 90):
        parts = [*lines_of(source, 0, cut), *lines_of(source, cut)]
        joined = write_lines(tmp_path / "joined.jsonl", parts)
        assert joined.path.read_bytes() == source.read_bytes() + b"\n"
        assert joined.lines == 51 and joined.sha256 == hashlib.sha256(joined.path.read_bytes()).hexdigest()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["joined.jsonl", "source.jsonl"]


def test_an_interrupted_write_keeps_the_older_file(source: Path) -> None:
    before = source.read_bytes()

    def interrupted():
        yield b"new\n"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_lines(source, interrupted())
    assert source.read_bytes() == before and len(list(source.parent.iterdir())) == 1
    with pytest.raises(UsageError, match=r"gone.jsonl: cannot be read"):
        write_lines(source, lines_of(source.with_name("gone.jsonl")))
    with pytest.raises(UsageError, match=r"gone.jsonl: cannot be read"):
        list(in_random_order(source.with_name("gone.jsonl"), 1))
    with pytest.raises(ArmillaryError, match="cannot be written"):
        write_lines(source / "file.jsonl", [b"\n"])
    full = pytest.raises(ArmillaryError, match="free space in the folder of temporary files")
    with full, temporary_table("numbers (n integer)") as table:
        table.execute("pragma max_page_count = 2")
        table.executemany("insert into numbers values (?)", ((n,) for n in range(10_000)))


_JOIN = """
import resource, sys
from pathlib import Path
from armillary.post.joins import in_random_order, lines_of, write_lines
source, out = Path(sys.argv[1]), Path(sys.argv[2])
list(in_random_order(Path(sys.argv[3]), 1))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
both = write_lines(out, (line for path in (source, source) for line in lines_of(path)))
half = write_lines(out, in_random_order(source, both.lines // 4))
print(both.lines, half.lines, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10)
"""


@pytest.mark.slow
def test_a_hundred_thousand_lines_in_bounded_memory(source: Path, tmp_path: Path) -> None:
    large = tmp_path / "large.jsonl"
    with open(large, "wb") as file:
        for number in range(120_000):
            file.write(b'{"n": %d, "text": "%s"}\n' % (number, b"words " * 60))
    assert large.stat().st_size > 40 << 20
    command = [sys.executable, "-c", _JOIN, str(large), str(tmp_path / "out.jsonl"), str(source)]
    both, half, grown = map(int, subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
    assert (both, half) == (240_000, 60_000)
    assert grown < 24, f"{grown} MiB"
