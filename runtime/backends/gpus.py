"""NVIDIA's GPUs as their driver tells of them, without any of CUDA's own libraries."""

import ctypes
import subprocess
import sys
from dataclasses import dataclass
from typing import Any, Final

from segship.runtime.errors import DeviceError

_TIMEOUT_S: Final = 20
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_… of cuda.h


@dataclass(frozen=True)
class Gpu:
    """A GPU of this machine.

    Attributes:
        name: such as ``NVIDIA L4``.
        compute_capability: such as ``8.9``: which instructions it has.
        memory_mb: that it has.
        driver: version of NVIDIA's driver.
    """

    name: str
    compute_capability: str
    memory_mb: int
    driver: str


def nvidia_gpus() -> tuple[Gpu, ...]:
    """Return all GPUs that ``nvidia-smi`` lists, in its order; none where it is missing or fails."""
    wanted = "name,compute_cap,memory.total,driver_version"
    command = ["nvidia-smi", f"--query-gpu={wanted}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=True)  # noqa: S603
    except (OSError, subprocess.SubprocessError):  # no driver, or one that hangs
        return ()
    rows = [[cell.strip() for cell in line.split(",")] for line in done.stdout.splitlines()]
    return tuple(
        Gpu(name, capability, int(memory) if memory.isdecimal() else 0, driver)
        for name, capability, memory, driver in (row for row in rows if len(row) == 4)
    )


def has_nvidia_driver() -> bool:
    """Tell whether NVIDIA's driver is installed; a GPU may be missing all the same."""
    return _driver() is not None


def cuda_number(device: str, backend: str, expected: str) -> int:
    """Return the number of the GPU that ``cuda[:N]`` names.

    Raises:
        DeviceError: if ``device`` is something else; ``expected`` are the names that ``backend`` takes.
    """
    name, separator, number = device.partition(":")
    if name != "cuda" or (separator and not (number.isascii() and number.isdecimal())):
        raise DeviceError(f"the {backend} backend has no device {device!r}; expected {expected}")
    return int(number or "0")


def cuda_gpu(number: int) -> tuple[str, str]:
    """Return name and compute capability of the GPU that CUDA counts as ``number``.

    CUDA's driver is asked itself, since ``nvidia-smi`` counts in another order and knows no CUDA_VISIBLE_DEVICES.

    Raises:
        DeviceError: if there is no such GPU.
    """
    driver = _driver()
    if driver is None:
        raise DeviceError(f"cuda:{number} was asked for, but this machine has no NVIDIA driver; use --device cpu")
    count, device, value = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    name = ctypes.create_string_buffer(256)
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)) or number >= count.value:
        raise DeviceError(
            f"cuda:{number} was asked for, but NVIDIA's driver finds {count.value} GPUs here; "
            "check nvidia-smi and CUDA_VISIBLE_DEVICES, or use --device cpu"
        )
    driver.cuDeviceGet(ctypes.byref(device), number)
    driver.cuDeviceGetName(name, len(name), device)
    capability = []
    for attribute in (_MAJOR, _MINOR):
        driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
        capability.append(str(value.value))
    return name.value.decode("utf-8", "replace"), ".".join(capability)


def driver_version() -> str:
    """Return the version of NVIDIA's driver as ``nvidia-smi`` says it; otherwise of the CUDA that it brings."""
    for gpu in nvidia_gpus():
        return gpu.driver
    version = ctypes.c_int()
    driver = _driver()
    if driver is not None:
        driver.cuDriverGetVersion(ctypes.byref(version))
    return f"CUDA {version.value}"


def _driver() -> Any:
    try:
        return ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return None
