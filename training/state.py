"""The state of a run, from which it goes on as if it had never been interrupted.

A state is one ``.safetensors`` file: tensors of the network, of the optimiser and of the weights' average, and in its
metadata the card, the run's progress as JSON, the kind of optimiser, and a sha-256 over all of it, so that a file that
was cut short or damaged is recognised. Nothing random needs to be kept: what is drawn is drawn from seed and step.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from segship.runtime.card import CARD_KEY, ModelCard
from segship.runtime.errors import CardError, CheckpointError, OutputError, one_line
from segship.runtime.files import replacing
from segship.training.optimisation import WeightAverage

STATES: Final = "last"
PROGRESS_KEY: Final = "progress"
OPTIMIZER_KEY: Final = "optimizer"
DIGEST_KEY: Final = "sha256"
NAME: Final = re.compile(r"step_(\d{9})\.safetensors")

_NETWORK, _AVERAGE, _OPTIMIZER = "network.", "average.", "optimizer."


def state_path(out: Path, step: int) -> Path:
    """Return where the state after so many steps is kept."""
    return out / STATES / f"step_{step:09}.safetensors"


def states(out: Path) -> list[Path]:
    """List the states of a run, the newest first."""
    return sorted((path for path in (out / STATES).glob("step_*") if NAME.fullmatch(path.name)), reverse=True)


def save_state(
    path: Path,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: WeightAverage | None,
    card: ModelCard,
    progress: Mapping[str, Any],
) -> None:
    """Write a state, whole or not at all, and wait until it is on the disk.

    Args:
        path: of the file.
        network: with its weights and statistics.
        optimizer: with its moments.
        average: of the weights, if there is one.
        card: of the run.
        progress: plain values that JSON can hold.

    Raises:
        OutputError: if it cannot be written.
    """
    tensors = {_NETWORK + name: tensor for name, tensor in network.state_dict().items()}
    for number, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"{_OPTIMIZER}{number}.{key}": value for key, value in moments.items() if value is not None}
    if average is not None:
        tensors |= {_AVERAGE + name: tensor for name, tensor in average.network.state_dict().items()}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata = {
        CARD_KEY: card.to_json(),
        PROGRESS_KEY: json.dumps(progress),
        OPTIMIZER_KEY: type(optimizer).__name__,
    }
    save_tensors(path, tensors, metadata | {DIGEST_KEY: _digest(tensors, metadata)})


def save_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a ``.safetensors`` file, whole or not at all, and wait until it is on the disk.

    Raises:
        OutputError: if it cannot be written; the library has its own error even for a full disk.
    """
    with replacing(path, durable=True) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode  # as files have it here; the library lets nobody else read its own
        try:
            save_file(tensors, temporary, metadata=metadata)
            temporary.chmod(mode)
        except SafetensorError as error:
            raise OutputError(f"cannot write {path}: {one_line(error)}") from error


class SavedState:
    """A state that was read back and found whole.

    Attributes:
        path: of the file.
        card: of the run.
        progress: as ``save_state`` was given it.

    Raises:
        CheckpointError: if it is missing, cut short or damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
                self._tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is no dict
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path} is cut short or no state of a run ({one_line(error)})") from error
        if missing := [key for key in (CARD_KEY, PROGRESS_KEY, OPTIMIZER_KEY, DIGEST_KEY) if key not in metadata]:
            raise CheckpointError(f"{path} is no state of a run: its metadata lacks {', '.join(missing)}")
        if metadata.pop(DIGEST_KEY) != _digest(self._tensors, metadata):
            raise CheckpointError(f"{path} is damaged: its contents do not have the checksum that it names")
        self._optimizer_name = metadata[OPTIMIZER_KEY]
        try:
            self.card = ModelCard.from_json(metadata[CARD_KEY], origin=str(path))
            self.progress = _parse_object(metadata[PROGRESS_KEY])
        except (CardError, ValueError, RecursionError) as error:
            raise CheckpointError(f"{path} is no state of a run ({one_line(error)})") from error

    def restore(self, network: nn.Module, optimizer: torch.optim.Optimizer, average: WeightAverage | None) -> None:
        """Put the state's tensors into these.

        Raises:
            CheckpointError: if they are of another network or optimiser.
        """
        try:
            if self._optimizer_name != (name := type(optimizer).__name__):  # load_state_dict takes any other's moments
                raise ValueError(f"its optimiser is {self._optimizer_name}, that of the run is {name}")
            network.load_state_dict(self._part(_NETWORK))
            moments: dict[int, dict[str, Tensor]] = {}
            for name, tensor in self._part(_OPTIMIZER).items():
                number, key = name.split(".")
                moments.setdefault(int(number), {})[key] = tensor
            optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
            _lay_out_like_weights(optimizer)
            if average is not None:
                average.network.load_state_dict(self._part(_AVERAGE))
            elif self._part(_AVERAGE):
                raise ValueError("it has an average of the weights, the run makes none")
        except (RuntimeError, ValueError) as error:
            raise CheckpointError(f"{self.path} does not fit this run ({one_line(error)})") from error

    def _part(self, prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): t for name, t in self._tensors.items() if name.startswith(prefix)}


def deployable_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """Return the weights that a state would be deployed with, its average if it has one; None if it is no state."""
    for prefix in (_AVERAGE, _NETWORK):
        part = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        if part:
            return part
    return None


def _lay_out_like_weights(optimizer: torch.optim.Optimizer) -> None:
    """Bring moments into their weights' order in memory, as they were: in another, steps take twice as long."""
    for weight, moments in optimizer.state.items():
        for key, moment in moments.items():
            if isinstance(moment, Tensor) and moment.shape == weight.shape:
                moments[key] = torch.empty_like(weight, requires_grad=False).copy_(moment)


def _parse_object(text: str) -> dict[str, Any]:
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError(f"its progress is a JSON {type(value).__name__}; expected an object")
    return value


def _digest(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
