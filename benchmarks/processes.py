"""Processes of our own that are measured: what they run in, and the memory that they use at most.

Imports nothing but the standard library, since a process that has loaded nothing is one of them.
"""

import os
import sys
from pathlib import Path


def installed_environment(bytecode: Path) -> dict[str, str]:
    """Return an environment in which compiled modules are kept in a folder, as an installed package's are."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return kept | {"PYTHONPYCACHEPREFIX": str(bytecode)}


def peak_bytes(pid: int | None = None) -> int:
    """Return the most resident memory that a process has used, of Linux alone, or this one; 0 if it has ended."""
    try:
        with open(f"/proc/{pid or 'self'}/status", encoding="ascii", errors="replace") as file:  # noqa: PTH123  # light
            return next((int(line.split()[1]) << 10 for line in file if line.startswith("VmHWM")), 0)
    except OSError:
        return _own_peak_bytes() if pid is None else 0


def _own_peak_bytes() -> int:
    """Return it where there is no ``/proc``; ``ru_maxrss`` begins with what the parent had."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << (0 if sys.platform == "darwin" else 10)
