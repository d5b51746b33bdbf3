"""PyTorch as a backend: the reference that every exported file is compared with."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from numpy.typing import NDArray

from segship.runtime.backends import EngineInfo
from segship.runtime.backends.common import share_threads
from segship.runtime.backends.options import DEFAULT_OPTIONS, EngineOptions
from segship.runtime.card import ModelCard
from segship.runtime.errors import BackendError, ModelError, one_line, require
from segship.runtime.model_file import CHECKPOINT_SUFFIX

if TYPE_CHECKING:
    import torch

_KNOWN: Final = frozenset({"threads", "streams"})


class TorchBackend:
    """Runs a checkpoint with PyTorch, in float32.

    Args:
        model: the ``.safetensors`` checkpoint.
        card: the checkpoint's.
        device: ``auto``, ``cpu`` or ``cuda[:N]``.
        options: threads, which all of PyTorch in this process then uses.
    """

    def __init__(self, model: Path, card: ModelCard, device: str, options: EngineOptions = DEFAULT_OPTIONS) -> None:
        options.allow("torch", _KNOWN).one_stream("torch", "it is the reference, not a runtime")
        if model.suffix != CHECKPOINT_SUFFIX:
            raise ModelError(f"the torch backend runs checkpoints ({CHECKPOINT_SUFFIX}), not {model}")
        if card.head != "logits":
            raise ModelError(f"{model}: the card promises {card.head}; a checkpoint returns logits")
        torch = require("torch", extra="export", purpose="the torch backend")
        from segship.training.checkpoint import load_checkpoint

        network, _ = load_checkpoint(model)
        share_threads(options, torch.get_num_threads, torch.set_num_threads)
        self._take(network, device)

    @classmethod
    def of_network(cls, network: "torch.nn.Module", device: str = "cpu") -> Self:
        """Run a network that is in memory: one that returns a tuple of logits, the main one first."""
        backend = cls.__new__(cls)
        backend._take(network, device)
        return backend

    def _take(self, network: "torch.nn.Module", device: str) -> None:
        import torch

        from segship.training.device import pick_device

        self._torch: Any = torch
        self._device = pick_device(device)
        self._network: torch.nn.Module | None = network.to(self._device)
        name = str(self._device) if self._device.type == "cpu" else f"cuda:{self._device.index or 0}"
        self._info = EngineInfo(
            "torch", f"PyTorch {self._torch.__version__}", name, "fp32", self._torch.get_num_threads()
        )

    @property
    def info(self) -> EngineInfo:
        """What really runs the network."""
        return self._info

    def run(self, batch: NDArray[Any]) -> NDArray[Any]:
        """Map the network's input (N, C, H, W) to its logits (N, K, H, W); from any thread."""
        network = self._network
        if network is None:
            raise BackendError("this backend is closed")
        try:
            with self._torch.inference_mode():
                logits: NDArray[Any] = network(self._torch.from_numpy(batch).to(self._device))[0].cpu().numpy()
        except RuntimeError as error:
            raise BackendError(f"PyTorch failed: {one_line(error)}") from error
        return logits

    def close(self) -> None:
        """Free the network as soon as the runs that are under way have ended."""
        self._network = None
