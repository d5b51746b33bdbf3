"""How many CPUs this process may use: those it may run on, and as much of them as its container grants."""

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

_CONTROL_GROUPS: Final = Path("/sys/fs/cgroup")
_OWN_GROUPS: Final = Path("/proc/self/cgroup")


def available_cpus(groups: Path = _CONTROL_GROUPS, own: Path = _OWN_GROUPS) -> int:
    """Return how many threads can run at once: the CPUs of this process's affinity, or its quota where that is less.

    The host's own number of cores says nothing in a container: as many threads as that wait for each other.

    Args:
        groups: where the control groups of Linux are mounted.
        own: the file that names the groups of this process.

    Returns:
        At least 1; a quota of a part of a CPU counts as a whole one.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota(groups, own)
    return allowed if quota is None else max(1, min(allowed, math.ceil(quota)))


def cpu_quota(groups: Path = _CONTROL_GROUPS, own: Path = _OWN_GROUPS) -> float | None:
    """Return how many CPUs' time the control groups of this process grant it; None where they set no limit.

    Both versions of Linux' control groups are read; of nested groups the narrowest counts. See "CPU" in
    Documentation/admin-guide/cgroup-v2.rst and Documentation/scheduler/sched-bwc.rst of Linux.
    """
    try:
        lines = own.read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return None
    quotas: list[float] = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            for mount in (groups, groups / "unified"):
                quotas += _quotas(mount, path, _quota_v2)
        elif "cpu" in controllers.split(","):
            for mount in {groups / controllers, groups / "cpu"}:
                quotas += _quotas(mount, path, _quota_v1)
    return min(quotas, default=None)


def _quotas(mount: Path, path: str, quota_of: Callable[[Path], float | None]) -> list[float]:
    """Return the quotas of a group and of all above it.

    A container often sees its own group as the root while its path is the one that the host sees; that folder is then
    not there, and the root, which is last on the way up, is what counts.
    """
    folder = mount / path.lstrip("/")
    above = [folder, *folder.parents]
    found = (quota_of(one) for one in above[: above.index(mount) + 1])
    return [quota for quota in found if quota is not None]


def _quota_v2(group: Path) -> float | None:
    quota, _, period = _read(group / "cpu.max").partition(" ")
    return int(quota) / int(period) if quota.isdecimal() and period.isdecimal() and int(period) else None


def _quota_v1(group: Path) -> float | None:
    quota, period = _read(group / "cpu.cfs_quota_us"), _read(group / "cpu.cfs_period_us")  # −1: no limit
    return int(quota) / int(period) if quota.isdecimal() and period.isdecimal() and int(period) else None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return ""
