"""How many workers fit is read from what the system and its control groups say, and said where it is fewer."""

from __future__ import annotations

import os

import pytest

from armillary.launch import fit_workers, worker_bytes
from armillary.launch.workers import capacity
from armillary.recipe import ModelShape

GIB = 2**30


def meminfo(gib):
    return f"MemTotal: 99999999 kB\nMemAvailable: {gib * 2**20} kB\n"


def write(root, files):
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


def test_memory_is_the_least_that_any_limit_leaves(tmp_path):
    assert capacity.available_memory(tmp_path) is None
    write(tmp_path, {"proc/meminfo": meminfo(20)})
    assert capacity.available_memory(tmp_path) == 20 * GIB
    write(tmp_path, {"proc/self/cgroup": "0::/user/job\n", "sys/fs/cgroup/user/job/memory.max": "max\n"})
    write(tmp_path, {"sys/fs/cgroup/user/job/memory.current": "5"})
    assert capacity.available_memory(tmp_path) == 20 * GIB
    # the group above has the limit; what it uses is partly files that can be dropped
    above = {
        "memory.max": str(8 * GIB),
        "memory.current": str(7 * GIB),
        "memory.stat": f"anon 1\ninactive_file {GIB}\n",
    }
    write(tmp_path, {f"sys/fs/cgroup/user/{name}": content for name, content in above.items()})
    assert capacity.available_memory(tmp_path) == 2 * GIB


def test_memory_in_control_groups_of_version_1(tmp_path):
    write(tmp_path, {"proc/meminfo": meminfo(20), "proc/self/cgroup": "8:pids:/\n4:memory:/host/path/of/it\n0::/\n"})
    group = {"memory.limit_in_bytes": str(3 * GIB), "memory.usage_in_bytes": str(GIB)}
    write(tmp_path, {f"sys/fs/cgroup/memory/{name}": content for name, content in group.items()})
    assert capacity.available_memory(tmp_path) == 2 * GIB
    write(tmp_path, {"sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712"})  # none
    assert capacity.available_memory(tmp_path) == 20 * GIB


@pytest.mark.parametrize(
    ("groups", "files", "cores"),
    [
        ("0::/a\n", {"a/cpu.max": "150000 100000\n"}, 2),
        ("0::/a\n", {"a/cpu.max": "max 100000\n"}, 8),
        ("0::/a\n", {"cpu.max": "50000 100000\n", "a/cpu.max": "max 100000"}, 1),
        (
            "3:cpu,cpuacct:/a\n",
            {"cpu,cpuacct/a/cpu.cfs_quota_us": "300000", "cpu,cpuacct/a/cpu.cfs_period_us": "100000"},
            3,
        ),
        ("3:cpu,cpuacct:/a\n", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000"}, 8),
        ("damaged\n", {"cpu.max": "one two"}, 8),
        ("0::/\n", {"cpu.max": ""}, 8),
    ],
)
def test_cores_are_the_fewest_that_any_limit_leaves(tmp_path, monkeypatch, groups, files, cores):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    write(tmp_path, {"proc/self/cgroup": groups, **{f"sys/fs/cgroup/{name}": text for name, text in files.items()}})
    assert capacity.available_cores(tmp_path) == cores


def test_fewer_workers_are_started_with_a_word(monkeypatch):
    monkeypatch.setattr(capacity, "available_cores", lambda: 8)
    monkeypatch.setattr(capacity, "available_memory", lambda: 5 * GIB)
    assert fit_workers(4, GIB) == (4, None)
    said = "5.0 GiB of memory available, and a worker takes about 1.0 GiB"
    assert fit_workers(99, GIB) == (4, f"4 workers instead of 99: {said}")
    assert fit_workers(99, GIB // 4) == (8, "8 workers instead of 99: 8 cores available")
    assert fit_workers(2, 80 * GIB)[0] == 1  # what fits nowhere is still tried
    monkeypatch.setattr(capacity, "available_memory", lambda: None)
    assert fit_workers(8, 80 * GIB) == (8, None)


def test_a_worker_needs_more_for_a_larger_model():
    small = ModelShape(n_layers=2, d_model=64, n_heads=4, n_kv_heads=4, head_dim=16, d_ff=192, vocab_size=4096)
    large = small.model_copy(update={"n_layers": 24, "d_model": 1024, "d_ff": 4096, "n_heads": 16, "head_dim": 64})
    assert 0.4 * GIB < worker_bytes(small, 2048) < 0.7 * GIB
    assert worker_bytes(large, 2048) > 16 * large.parameters + worker_bytes(small, 1)
