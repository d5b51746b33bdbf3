"""A Ray cluster: being connected to it, and what it has for each worker."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from segship.runtime.backends.cpu_quota import available_cpus
from segship.runtime.backends.options import EngineOptions
from segship.runtime.errors import BackendError, DeviceError, one_line, require

_STORE_BYTES: Final = 256 << 20  # Ray would take a third of the RAM, and what goes through its store is a few lines
_PATIENCE_S: Final = 10.0
_QUIET: Final = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DATA_LOG_LEVEL": "ERROR",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
}


@dataclass(frozen=True)
class Share:
    """What each worker gets of the cluster: a GPU, or the threads of one engine on the CPU.

    Attributes:
        workers: that there is room for.
        cpus: of each.
        gpus: of each, 0 or 1.
    """

    workers: int
    cpus: int
    gpus: int


def import_ray() -> Any:
    """Import Ray without the report that it sends to its makers; what the user has set himself stays as it is.

    Raises:
        MissingExtraError: if it is not installed.
    """
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    require("ray.data", extra="ray", purpose="--ray")
    return require("ray", extra="ray", purpose="--ray")


@contextmanager
def connected(ray: Any, address: str) -> Iterator[None]:
    """Be connected to a cluster; one that the caller has connected to already is used and left as it is.

    Args:
        ray: the module.
        address: as ``ray.init`` takes it.

    Raises:
        BackendError: if it cannot be reached.
    """
    if ray.is_initialized():
        yield
        return
    settings: dict[str, Any] = {"logging_level": "error", "log_to_driver": False}
    if address == "local":
        settings |= {"num_cpus": available_cpus(), "include_dashboard": False, "object_store_memory": _STORE_BYTES}
    try:
        _knock(address)
        with _native_silence():
            ray.init(address=address, **settings)
    except (OSError, OverflowError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise BackendError(
            f"no Ray cluster can be reached at {address!r} ({one_line(error)}); expected HOST:PORT, auto or local"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def share_of(ray: Any, device: str, options: EngineOptions) -> Share:
    """Decide how many workers there are and what each of them gets, from what the cluster has and what is asked for.

    Args:
        ray: connected to the cluster.
        device: ``auto``: the GPUs if there are any, else the CPUs; ``cpu``; ``cuda``.
        options: of whose threads a worker on the CPU has as many CPUs; None: all of the smallest machine.

    Raises:
        DeviceError: if the cluster does not have the device.
        BackendError: if it has no room for a worker.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = int(sum(node.get("GPU", 0) for node in nodes))
    if device.startswith("cuda:"):
        raise DeviceError(f"{device} was asked for, but Ray gives each worker a GPU of its own; use --device cuda")
    if device == "cuda" and not gpus:
        raise DeviceError("cuda was asked for, but the Ray cluster has no GPUs; use --device cpu")
    if gpus and device in ("auto", "cuda"):
        return Share(gpus, 1, 1)
    cpus = [int(node["CPU"]) for node in nodes if node.get("CPU", 0) >= 1]
    if not cpus:
        raise BackendError("the Ray cluster has no CPUs to give away; start its nodes with --num-cpus")
    threads = options.threads or min(cpus)
    if not (workers := sum(count // threads for count in cpus)):
        raise BackendError(
            f"{threads} threads were asked for, but no machine of the Ray cluster has more than {max(cpus)} CPUs"
        )
    return Share(workers, threads, 0)


def _knock(address: str) -> None:
    """Fail soon where nobody listens: Ray's native part would wait for minutes, and then end this process.

    Raises:
        OSError: if nobody listens at an address of the form HOST:PORT.
    """
    host, separator, port = address.rpartition(":")
    if separator and "/" not in host and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), _PATIENCE_S).close()


@contextmanager
def _native_silence() -> Iterator[None]:
    """Keep off stderr what Ray's native part says of its own log level; what goes wrong, Ray raises."""
    kept, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 2)
    os.close(nothing)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
