"""Where TensorRT's engines are kept: a folder for each model on each GPU with each driver and version."""

import contextlib
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from segship.runtime.errors import OutputError

_MARK: Final = "engine.json"


@dataclass(frozen=True)
class EngineKey:
    """Everything that an engine depends on; if any of it changes, another engine is built.

    Attributes:
        gpu: name of the GPU.
        compute_capability: of the GPU.
        driver: version of NVIDIA's driver.
        tensorrt: version of TensorRT.
        onnxruntime: version of ONNX Runtime, which cuts the graph into the parts that TensorRT runs.
        content: sha-256 of what the model computes and how it is used.
        precision: that the engine calculates in.
        tf32: whether what is in float32 may be rounded before it is multiplied.
        memory_limit_mb: of building it, which decides among the ways to calculate; None: no limit.
        shapes: that it is built for: the least, usual and largest input.
    """

    gpu: str
    compute_capability: str
    driver: str
    tensorrt: str
    onnxruntime: str
    content: str
    precision: str
    tf32: bool
    memory_limit_mb: int | None
    shapes: tuple[tuple[int, ...], ...]

    @property
    def name(self) -> str:
        """Name of the engine's folder."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:32]


def engine_folder(key: EngineKey, cache: str | None) -> Path:
    """Return the folder in which the engine of ``key`` is or would be kept.

    Args:
        key: of the engine.
        cache: the folder of all engines; None: ``segship/tensorrt`` in the user's cache folder, which
            ``XDG_CACHE_HOME`` names (XDG Base Directory Specification).
    """
    if cache is not None:
        return Path(cache) / key.name
    home = os.environ.get("XDG_CACHE_HOME", "")
    root = Path(home) if Path(home).is_absolute() else Path.home() / ".cache"
    return root / "segship" / "tensorrt" / key.name


def is_whole(folder: Path) -> bool:
    """Tell whether a folder holds an engine that was built to the end."""
    return (folder / _MARK).is_file()


@contextlib.contextmanager
def building(folder: Path, key: EngineKey) -> Iterator[Path]:
    """Yield a new folder to build an engine in; on success it is moved to ``folder``, on failure it goes.

    Where another process was faster its engine, which is the same, stays.

    Raises:
        OutputError: if it cannot be written.
    """
    temporary = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        (temporary / _MARK).write_text(json.dumps(asdict(key), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        if not is_whole(folder):
            with contextlib.suppress(FileNotFoundError):
                shutil.rmtree(folder)  # of an engine whose mark was removed
            temporary.replace(folder)
    except OSError as error:
        if not is_whole(folder):
            raise OutputError(f"cannot keep an engine in {folder.parent}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
