"""What PyTorch computes on the way: a fingerprint of every tensor that any of its operators returns."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode  # where PyTorch's notes on extending it have it

from segship.export.fingerprint import Fingerprint, fingerprint


@dataclass(frozen=True)
class Record:
    """One tensor.

    Attributes:
        operator: that returned it, such as ``aten.convolution``; ``input`` for what the module was given.
        path: of the module that called the operator, such as ``network.encoder.0``; empty for the outermost.
        fingerprint: of its values.
    """

    operator: str
    path: str
    fingerprint: Fingerprint

    def __str__(self) -> str:
        return f"{self.operator} in {self.path}" if self.path else self.operator


@dataclass
class Recording:
    """What was computed.

    Attributes:
        records: in the order of computation.
        network_output: what the submodule ``network`` returned first.
        network_end: number of the records up to there.
    """

    records: list[Record] = field(default_factory=list)
    network_output: Fingerprint | None = None
    network_end: int = 0


def record(module: nn.Module, batch: NDArray[Any], network_output: NDArray[Any] | None = None) -> Recording:
    """Run a module and record what every operator returns.

    Args:
        module: with a submodule ``network``, on the CPU, in evaluation mode.
        batch: its input.
        network_output: what is given on in place of the network's main output, which has as many values; only what
            comes after the network is recorded then.
    """
    recording = Recording()
    path = [""]

    def end_network(_: nn.Module, __: object, output: Any) -> Any:
        main = output if isinstance(output, Tensor) else output[0]
        recording.network_output = fingerprint(main.numpy())
        recording.network_end = len(recording.records)
        if network_output is None:
            return None
        given = torch.from_numpy(network_output.astype(np.float32)).reshape(main.shape)
        return given if isinstance(output, Tensor) else (given, *output[1:])

    image = torch.tensor(batch)  # a copy: a decoded picture may be read-only
    if network_output is None:
        recording.records.append(Record("input", "", fingerprint(batch)))
    recorder = _Recorder(recording, path, after_network_only=network_output is not None)
    with torch.no_grad(), _paths(module, path), recorder:
        hook = module.get_submodule("network").register_forward_hook(end_network)
        try:
            module(image)
        finally:
            hook.remove()
    return recording


@contextlib.contextmanager
def _paths(module: nn.Module, path: list[str]) -> Iterator[None]:
    """Keep the names of the modules that are running in ``path``, the innermost one last."""
    hooks = []
    for name, part in module.named_modules():
        hooks.append(part.register_forward_pre_hook(_entering(name, path)))
        hooks.append(part.register_forward_hook(_leaving(path)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _entering(name: str, path: list[str]) -> Callable[[nn.Module, Any], None]:
    return lambda _, __: path.append(name)


def _leaving(path: list[str]) -> Callable[[nn.Module, Any, Any], None]:
    def leave(_: nn.Module, __: object, ___: object) -> None:
        path.pop()

    return leave


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]  # its base is not annotated
    def __init__(self, recording: Recording, path: list[str], *, after_network_only: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # likewise
        self._recording, self._path, self._after_network_only = recording, path, after_network_only

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        returned = func(*args, **(kwargs or {}))
        if self._after_network_only and self._recording.network_output is None:
            return returned
        name = f"{func.namespace}.{func.overloadpacket.__name__}"
        for tensor in returned if isinstance(returned, tuple | list) else (returned,):
            if isinstance(tensor, Tensor) and tensor.numel() and not tensor.is_complex():
                self._recording.records.append(Record(name, self._path[-1], fingerprint(tensor.numpy())))
        return returned
