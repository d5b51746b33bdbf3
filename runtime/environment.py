"""What of segship works on this machine: its CPU, its GPUs, and each engine on each device, tried out."""

import importlib.metadata
import os
import platform
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import segship
from segship.runtime.backends.cpu_quota import available_cpus, cpu_quota
from segship.runtime.backends.gpus import Gpu, has_nvidia_driver, nvidia_gpus
from segship.runtime.backends.tensorrt_library import INSTALL as INSTALL_TENSORRT
from segship.runtime.probe import Probe, probe

_DEVICES: Final = {
    "ort": ("cpu", "cuda"),
    "tensorrt": ("cuda",),
    "opencv": ("cpu", "cuda", "opencl"),
    "openvino": ("cpu",),
}
_PACKAGES: Final = {
    "ort": ("onnxruntime", "onnxruntime-gpu"),
    "tensorrt": ("tensorrt-cu13", "tensorrt-cu12", "tensorrt"),
    "opencv": (
        *("opencv-python-headless", "opencv-python"),
        *("opencv-contrib-python-headless", "opencv-contrib-python"),
    ),
    "openvino": ("openvino",),
    "torch": ("torch",),
}
_SPEEDS_UP: Final = (
    "avx2",
    "avx512f",
    "avx_vnni",
    "avx512_vnni",
    "avx512_bf16",
    "amx_bf16",
    "amx_int8",
    "asimd",
    "bf16",
)
_CPU_INFO: Final = Path("/proc/cpuinfo")


@dataclass(frozen=True)
class Cpu:
    """The processor.

    Attributes:
        name: of the model.
        cores: that this machine has.
        usable: threads that this process may run at once, which is how many engines are given.
        quota: CPUs' time that the container grants; None: no limit.
        features: sets of instructions that make networks faster.
    """

    name: str
    cores: int
    usable: int
    quota: float | None
    features: tuple[str, ...]


@dataclass(frozen=True)
class EngineState:
    """An engine on a device.

    Attributes:
        backend: the name that ``--backend`` takes.
        device: the name that ``--device`` takes.
        packages: what is installed of it, such as ``onnxruntime 1.31.1``.
        works: it ran a graph of two nodes and computed the right numbers; None: it runs checkpoints, and was not tried.
        detail: what ran it, or why nothing did.
        install: the line that installs what is missing; empty where there is none, or nothing to gain by it.
    """

    backend: str
    device: str
    packages: tuple[str, ...]
    works: bool | None
    detail: str
    install: str = ""


@dataclass(frozen=True)
class Environment:
    """What is installed here, and what of it works."""

    segship: str
    python: str
    platform: str
    cpu: Cpu
    gpus: tuple[Gpu, ...]
    engines: tuple[EngineState, ...]

    def to_plain(self) -> dict[str, Any]:
        """Return it as plain values, for JSON."""
        return asdict(self)


def examine(backends: Sequence[str]) -> Environment:
    """Look at this machine, and try each engine on each of its devices.

    Nothing that is missing is an error. Takes seconds; minutes where TensorRT is installed, which builds an engine.

    Args:
        backends: names of the engines that run exported files.
    """
    pairs = [(name, device) for name in backends for device in _DEVICES.get(name, ("auto",))]
    with ThreadPoolExecutor(available_cpus()) as workers:
        probes = list(workers.map(lambda pair: probe(*pair), pairs))
    has_driver = has_nvidia_driver()
    return Environment(
        segship.__version__,
        platform.python_version(),
        platform.platform(),
        read_cpu(),
        nvidia_gpus(),
        (*(_state(one, has_driver=has_driver) for one in probes), _torch_state()),
    )


def read_cpu(info: Path = _CPU_INFO) -> Cpu:
    """Return what is known of the processor.

    Args:
        info: the file in which Linux describes it; on other systems name and features are missing.
    """
    try:
        lines = [line.partition(":") for line in info.read_text(encoding="utf-8").splitlines()]
    except OSError:
        lines = []
    facts = {key.strip(): value.strip() for key, _, value in reversed(lines)}  # of the first core, which comes last
    flags = facts.get("flags", facts.get("Features", "")).split()  # x86 and Arm
    return Cpu(
        facts.get("model name") or platform.processor() or platform.machine(),
        os.cpu_count() or 1,
        available_cpus(),
        cpu_quota(),
        tuple(flag for flag in _SPEEDS_UP if flag in flags),
    )


def _state(probed: Probe, *, has_driver: bool) -> EngineState:
    packages = _installed(probed.backend)
    if probed.works:
        note = f" ({probed.note})" if probed.note else ""
        detail = f"{probed.engine} on {probed.running_device} in {probed.precision}{note}"
        return EngineState(probed.backend, probed.device, packages, works=True, detail=detail)
    if probed.device == "cuda" and not has_driver:
        return EngineState(probed.backend, "cuda", packages, works=False, detail="no NVIDIA GPU and driver found")
    install = _install_line(probed.backend, probed.device, packages)
    return EngineState(probed.backend, probed.device, packages, works=False, detail=probed.fault, install=install)


def _torch_state() -> EngineState:
    packages = _installed("torch")
    if packages:
        return EngineState("torch", "auto", packages, works=None, detail="runs checkpoints, not exported files")
    return EngineState(
        "torch", "auto", (), works=False, detail="not installed", install='pip install "segship[export]"'
    )


def _installed(backend: str) -> tuple[str, ...]:
    found = []
    for name in _PACKAGES.get(backend, ()):
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return tuple(found)


def _install_line(backend: str, device: str, packages: tuple[str, ...]) -> str:
    if backend == "ort":
        # The builds for CPU and GPU are one package under two names, and break each other.
        names = " ".join(one.partition(" ")[0] for one in packages)
        first = f"pip uninstall -y {names}; " if names else ""
        return first + f'pip install "segship[{"gpu" if device == "cuda" else "cpu"}]"'
    return {"tensorrt": INSTALL_TENSORRT, "openvino": 'pip install "segship[openvino]"'}.get(backend, "")
