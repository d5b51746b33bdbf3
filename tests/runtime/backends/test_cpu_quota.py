"""How many CPUs a container grants: trees of control groups as Linux shows them, in real files."""

import os
from pathlib import Path

import pytest

from segship.runtime.backends.cpu_quota import available_cpus, cpu_quota

CPUS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def tree(folder: Path, own: str, files: dict[str, str]) -> tuple[Path, Path]:
    """Write the mounted groups and the file that names a process's own; return both."""
    for name, text in files.items():
        path = folder / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    named = folder / "own"
    named.write_text(own + "\n")
    return folder / "cgroup", named


@pytest.mark.parametrize(
    ("own", "files", "quota"),
    [
        ("0::/", {"cpu.max": "150000 100000"}, 1.5),
        ("0::/", {"cpu.max": "max 100000"}, None),
        ("0::/", {}, None),
        ("0::/", {"unified/cpu.max": "50000 100000"}, 0.5),
        ("0::/a/b", {"a/b/cpu.max": "300000 100000", "a/cpu.max": "200000 100000", "cpu.max": "max 100000"}, 2),
        ("0::/a/b", {"a/b/cpu.max": "100000 100000", "a/cpu.max": "200000 100000"}, 1),
        ("0::/docker/seen/by/the/host", {"cpu.max": "250000 100000"}, 2.5),
        ("0::/../sibling", {"cpu.max": "250000 100000"}, 2.5),
        ("4:cpu,cpuacct:/", {"cpu/cpu.cfs_quota_us": "150000", "cpu/cpu.cfs_period_us": "50000"}, 3),
        (
            "4:cpu,cpuacct:/x",
            {"cpu,cpuacct/x/cpu.cfs_quota_us": "70000", "cpu,cpuacct/x/cpu.cfs_period_us": "100000"},
            0.7,
        ),
        ("4:cpu:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ("3:cpuset:/\n1:name=systemd:/", {"cpuset/cpu.cfs_quota_us": "1", "cpuset/cpu.cfs_period_us": "2"}, None),
        (
            "1:cpu:/\n0::/",
            {"cpu/cpu.cfs_quota_us": "200000", "cpu/cpu.cfs_period_us": "100000", "unified/cpu.max": "100000 100000"},
            1,
        ),
        ("0::/", {"cpu.max": "nonsense"}, None),
        ("0::/", {"cpu.max": "100000 0"}, None),
    ],
)
def test_the_narrowest_group_on_the_way_up_counts(
    tmp_path: Path, own: str, files: dict[str, str], quota: float | None
) -> None:
    assert cpu_quota(*tree(tmp_path, own, files)) == quota


@pytest.mark.parametrize(
    ("limit", "threads"), [("10000", 1), ("100000", 1), ("110000", min(2, CPUS)), ("99900000", CPUS), ("max", CPUS)]
)
def test_threads_are_the_quota_rounded_up_and_never_more_than_the_affinity(
    tmp_path: Path, limit: str, threads: int
) -> None:
    assert available_cpus(*tree(tmp_path, "0::/", {"cpu.max": f"{limit} 100000"})) == threads


def test_where_there_are_no_control_groups_the_affinity_counts(tmp_path: Path) -> None:
    assert cpu_quota(tmp_path, tmp_path / "missing") is None
    assert available_cpus(tmp_path, tmp_path / "missing") == CPUS
