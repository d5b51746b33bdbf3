"""What a measurement ran on: the machine, its GPU's clocks, its load, and the versions of what computes."""

import os
import platform
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from typing import Final

import segship
from segship.runtime.backends.gpus import nvidia_gpus
from segship.runtime.environment import read_cpu

_PACKAGES: Final = (
    *("onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt-cu13", "tensorrt-cu12", "torch"),
    *("opencv-python-headless", "opencv-python", "opencv-contrib-python-headless", "opencv-contrib-python"),
    *("numpy", "pillow", "onnx"),
)
_GPU_STATE: Final = {
    "clocks.sm": "MHz of its processors",
    "clocks.mem": "MHz of its memory",
    "clocks.max.sm": "MHz of its processors at most",
    "power.draw": "W drawn",
    "power.limit": "W at most",
    "temperature.gpu": "°C",
}
_TIMEOUT_S: Final = 20


def machine_facts() -> dict[str, str]:
    """Return CPU, usable threads, quota and GPUs, by name."""
    cpu = read_cpu()
    facts = {
        "CPU": cpu.name,
        "usable threads": f"{cpu.usable} of {cpu.cores}",
        "CPU quota": "none" if cpu.quota is None else f"{cpu.quota:g} CPUs",
        "instructions": ", ".join(cpu.features) or "unknown",
        "platform": platform.platform(),
    }
    for number, (gpu, state) in enumerate(zip(nvidia_gpus(), gpu_states(), strict=False)):
        facts[f"GPU {number}"] = f"{gpu.name}, {gpu.memory_mb} MB, driver {gpu.driver}"
        facts[f"GPU {number} before"] = state
    return facts


def gpu_states() -> tuple[str, ...]:
    """Return clocks, power and temperature of each GPU now, in words; none where ``nvidia-smi`` is missing or fails."""
    command = ["nvidia-smi", f"--query-gpu={','.join(_GPU_STATE)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=True)  # noqa: S603  # fixed
    except (OSError, subprocess.SubprocessError):
        return ()
    rows = ([cell.strip() for cell in line.split(",")] for line in done.stdout.splitlines())
    return tuple(
        ", ".join(f"{value} {name}" for value, name in zip(row, _GPU_STATE.values(), strict=True))
        for row in rows
        if len(row) == len(_GPU_STATE)
    )


def gpu_states_under(load: Callable[[], object]) -> tuple[str, ...]:
    """Return :func:`gpu_states` while a load runs again and again, since a GPU at rest lowers clocks and power."""
    with ThreadPoolExecutor(1) as worker:
        states = worker.submit(gpu_states)
        while not states.done():
            load()
        return states.result()


def load_average() -> str:
    """Return how many threads wanted to run at once over the last 1, 5 and 15 minutes; the system must tell."""
    return ", ".join(f"{load:.2f}" for load in os.getloadavg()) if hasattr(os, "getloadavg") else "unknown"


def package_versions() -> dict[str, str]:
    """Return the versions of segship, Python and the packages that compute, of those that are installed."""
    found = {"segship": segship.__version__, "Python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
