"""Virtual environments of contenders: made once, kept, and made anew where they should hold something else.

Packages come from where pip is set up to take them from.
"""

import hashlib
import importlib.metadata
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import segship
from segship.benchmarks.rival_process import RivalError, run_program
from segship.runtime.files import write_text

INSTALL_LIMIT_S: Final = 3600.0

_STAMP: Final = "contents.json"
_SOURCES: Final = ("src", "runtime", "training", "export", "benchmarks", "pyproject.toml", "README.md", "LICENSE")


@dataclass(frozen=True)
class Environment:
    """A virtual environment.

    Attributes:
        folder: where it lies.
        install_bytes: of the files that its packages brought.
    """

    folder: Path
    install_bytes: int

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.program("python")

    def program(self, name: str) -> Path:
        """Return the path of a command that a package of it brought."""
        return _programs(self.folder) / name

    def versions(self, names: Sequence[str]) -> dict[str, str]:
        """Return the versions of packages, of those that are installed."""
        places = [str(place) for place in _site_packages(self.folder)]
        found = {one.metadata["Name"]: one.version for one in importlib.metadata.distributions(path=places)}
        return {name: found[name] for name in names if name in found}


def make_environment(folder: Path, requirements: Sequence[str]) -> Environment:
    """Make a virtual environment with packages, or take the one that is there if it was made with the same.

    Raises:
        RivalError: if pip cannot install them, with what it says; or takes longer than an hour.
    """
    wanted = {"requirements": list(requirements)}
    if (kept := _kept(folder, wanted)) is not None:
        return kept
    return _install(folder, requirements, wanted)


def make_own_environment(folder: Path, extra: str, pins: Sequence[str]) -> Environment:
    """Make an environment with this segship and one of its extras, like :func:`make_environment`.

    In a checkout it is built from a copy of its files, which is made anew once one of them has changed.

    Args:
        folder: of the environment.
        extra: that brings an engine.
        pins: that engine in the version that the rival has, as requirements.
    """
    root = Path(segship.__file__).resolve().parents[2]
    if not (root / "pyproject.toml").exists():
        return make_environment(folder, [f"segship[{extra}]=={segship.__version__}", *pins])
    wanted = {"requirements": [f"segship[{extra}]", *pins], "sources": _fingerprint(root)}
    if (kept := _kept(folder, wanted)) is not None:
        return kept
    with tempfile.TemporaryDirectory() as copy:  # building leaves things beside the sources
        for name in _SOURCES:
            if (root / name).is_dir():
                unwanted = shutil.ignore_patterns("__pycache__", "*.egg-info")
                shutil.copytree(root / name, Path(copy) / name, symlinks=True, ignore=unwanted)
            else:
                shutil.copy(root / name, copy)
        return _install(folder, [f"{copy}[{extra}]", *pins], wanted)


def folder_bytes(folder: Path) -> int:
    """Return the bytes of all files below a folder; links are not followed, and a file with two names counts once."""
    found = {}
    for path in folder.rglob("*"):
        status = path.lstat()
        if not path.is_dir():
            found[status.st_dev, status.st_ino] = status.st_size
    return sum(found.values())


def _kept(folder: Path, wanted: Mapping[str, object]) -> Environment | None:
    try:
        stamp = json.loads((folder / _STAMP).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return Environment(folder, stamp["install_bytes"]) if stamp["wanted"] == wanted else None


def _install(folder: Path, requirements: Sequence[str], wanted: Mapping[str, object]) -> Environment:
    """Make an environment anew; write down what it holds last of all, so that one that was cut short is no good."""
    shutil.rmtree(folder, ignore_errors=True)
    run_program([sys.executable, "-m", "venv", "--without-pip", folder], limit_s=INSTALL_LIMIT_S)
    # This environment's pip installs into that one, which then holds nothing but what was asked for.
    into = ["--python", str(_programs(folder) / "python"), "--quiet", "--disable-pip-version-check"]
    try:
        run_program([sys.executable, "-m", "pip", *into, "install", *requirements], limit_s=INSTALL_LIMIT_S)
    except RivalError as error:
        names = " ".join(Path(requirement).name for requirement in requirements)
        raise RivalError(f"cannot install {names}", error.told) from error
    size = sum(folder_bytes(place) for place in _site_packages(folder))
    write_text(folder / _STAMP, json.dumps({"wanted": wanted, "install_bytes": size}))
    return Environment(folder, size)


def _site_packages(folder: Path) -> Iterator[Path]:
    return folder.rglob("site-packages") if os.name == "nt" else folder.glob("lib/python*/site-packages")


def _programs(folder: Path) -> Path:
    return folder / ("Scripts" if os.name == "nt" else "bin")


def _fingerprint(root: Path) -> str:
    """Return a hash of the sources, as they lie there."""
    files = [root / "pyproject.toml", *(path for name in _SOURCES[1:5] for path in (root / name).rglob("*.py"))]
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()
