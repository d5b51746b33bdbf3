"""How large is an installation of the runtime alone? The sum of what its packages hold, wherever they are installed.

python docs/lean_size.py
"""

import importlib.metadata
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import segship

EXTRA: Final = "cpu"
FLOORS: Final = ("runtime", "training", "export", "benchmarks")


def lean_sizes() -> dict[str, int]:
    """Return the bytes of each package that ``pip install "segship[cpu]"`` installs, compiled modules included."""
    root = Path(segship.__file__).parent
    own = [path for floor in FLOORS for path in (root / floor).resolve().rglob("*.py")]
    sizes = {"segship": sum(path.stat().st_size for path in own)}
    waiting = list(_needs("segship", {EXTRA}))
    while waiting:
        name, extras = waiting.pop()
        if name not in sizes:
            held = [path.locate() for path in importlib.metadata.files(name) or ()]
            sizes[name] = sum(Path(path).stat().st_size for path in held if Path(path).is_file())
            waiting += _needs(name, extras)
    return sizes


def _needs(name: str, extras: set[str]) -> Iterator[tuple[str, set[str]]]:
    """Yield name and extras of each package that a package needs here, with these extras of it."""
    from packaging.requirements import Requirement

    for text in importlib.metadata.requires(name) or ():
        needed = Requirement(text)
        if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in extras or {""}):
            yield re.sub(r"[-_.]+", "-", needed.name).lower(), needed.extras


if __name__ == "__main__":
    sizes = lean_sizes()
    for package, size in sorted(sizes.items(), key=lambda pair: -pair[1]):
        print(f"{size / 1e6:7.1f} MB  {package}")  # noqa: T201  # a script's output
    print(f"{sum(sizes.values()) / 1e6:7.1f} MB  in all")  # noqa: T201  # a script's output
