"""TensorRT's libraries: where they lie, and how they come here."""

import ctypes
import importlib.util
import os
import sys
from pathlib import Path
from typing import Any, Final

from segship.runtime.backends.ort import INSTALL_GPU
from segship.runtime.errors import DeviceError

INSTALL: Final = f'{INSTALL_GPU} "tensorrt-cu13<11"'
"""ONNX Runtime 1.31's provider is linked to TensorRT 10 for CUDA 13."""


def load_tensorrt() -> str:
    """Load TensorRT's libraries, which pip puts where no loader looks, and return their version.

    Raises:
        DeviceError: if they are not installed.
    """
    library = _first_library()
    if library is None:
        raise DeviceError(f"tensorrt was asked for, but TensorRT 10 is not installed; install it with: {INSTALL}")
    version = int(library.getInferLibVersion())  # 101303 is 10.13.3
    return f"{version // 10000}.{version // 100 % 100}.{version % 100}"


def _first_library() -> Any:
    """Load TensorRT's libraries and return that which the others stand on; None if it is not there."""
    package = importlib.util.find_spec("tensorrt_libs")
    folders = [Path(place) for place in (package.submodule_search_locations or [])] if package else []
    names = ("nvinfer_10.dll", "nvonnxparser_10.dll", "nvinfer_plugin_10.dll")
    if sys.platform != "win32":
        names = ("libnvinfer.so.10", "libnvinfer_plugin.so.10", "libnvonnxparser.so.10")
    loaded = [_loaded([*(folder / name for folder in folders), Path(name)]) for name in names]
    return loaded[0]


def _loaded(places: list[Path]) -> Any:
    for place in places:
        try:
            return ctypes.CDLL(os.fspath(place), mode=getattr(ctypes, "RTLD_GLOBAL", 0))
        except OSError:
            continue
    return None
