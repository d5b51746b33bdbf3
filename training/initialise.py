"""Weights to start from: what fits of another checkpoint. No code in the file runs."""

import pickle
import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from segship.runtime.errors import CheckpointError, one_line
from segship.runtime.model_file import CHECKPOINT_SUFFIX
from segship.training.state import deployable_tensors

NAMES_SHOWN: Final = 4

_WRAPPER_KEYS: Final = ("state_dict", "model_state_dict", "model")
_WRAPPER_PREFIXES: Final = ("module.", "_orig_mod.")  # of DataParallel and of torch.compile


@dataclass(frozen=True)
class Misfit:
    """A tensor that file and network have under one name, and not in one form.

    Attributes:
        name: of both.
        in_file: its shape there, such as ``1×6×1×1``, with its type if that is no float.
        in_network: likewise.
    """

    name: str
    in_file: str
    in_network: str

    def __str__(self) -> str:
        return f"{self.name} (file {self.in_file}, network {self.in_network})"


@dataclass(frozen=True)
class InitReport:
    """Which tensors of a network came from a file. As text it has one to three lines, long lists shortened.

    Attributes:
        loaded: names of those that did.
        misfits: those that have another shape in the file; they keep their fresh values.
        missing: names of those that the file does not have; likewise.
        unused: names that only the file has.
    """

    loaded: tuple[str, ...]
    misfits: tuple[Misfit, ...]
    missing: tuple[str, ...]
    unused: tuple[str, ...]

    def __str__(self) -> str:
        total = len(self.loaded) + len(self.misfits) + len(self.missing)
        text = f"loaded {len(self.loaded)} of {total} tensors"
        if self.misfits:
            text += f"; fresh: {shortened(self.misfits)}"
        if self.missing:
            text += f"\nfresh, since not in the file: {shortened(self.missing)}"
        if self.unused:
            text += f"\nonly in the file: {shortened(self.unused)}"
        return text


def initialise(network: nn.Module, path: Path) -> InitReport:
    """Give a network those weights of a file that have its names and shapes; the others stay as they are.

    Args:
        network: stays on its device and in its precision, to which the weights are cast.
        path: a ``.safetensors`` file, with or without a card, or a state dict as ``torch.save`` writes it (``.pth``,
            ``.pt``), bare or under one of the usual keys, also that of a wrapped network ("module."). Of a run's state
            it is the weights that would be deployed.

    Raises:
        CheckpointError: if the file cannot be read as weights, none of them fits, or one that fits is no number. The
            network is as it was then.
    """
    wanted: dict[str, Tensor] = network.state_dict()
    found = _read(path, wanted)
    fitting = {name: found[name] for name in wanted if name in found and _fits(found[name], wanted[name])}
    if not any(tensor.is_floating_point() for tensor in fitting.values()):
        raise CheckpointError(
            f"{path}: none of its weights has name and shape of one of the network; it has {shortened(found)}; "
            f"the network has {shortened(wanted)}; give weights of this architecture"
        )
    cast = {name: tensor.detach().to(wanted[name].dtype) for name, tensor in fitting.items()}
    for name, tensor in cast.items():
        if not torch.isfinite(tensor).all():
            raise CheckpointError(f"{path}: its tensor {name} has values that are no numbers (NaN or infinite)")
    network.load_state_dict(cast, strict=False)
    return InitReport(
        loaded=tuple(cast),
        misfits=tuple(
            Misfit(name, _form(found[name]), _form(wanted[name]))
            for name in wanted
            if name in found and name not in cast
        ),
        missing=tuple(name for name in wanted if name not in found),
        unused=tuple(name for name in found if name not in wanted),
    )


def _read(path: Path, wanted: Iterable[str]) -> dict[str, Tensor]:
    """Read the tensors of a file, on the CPU, by name; what was put before all names goes, if they are not ``wanted``.

    Raises:
        CheckpointError: if it is missing, damaged, holds no tensors, or asks for code.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} is not there, or no file; expected weights (.safetensors, .pth or .pt)")
    try:
        with warnings.catch_warnings(action="ignore"):  # of odd pickles: each is read, or is the error below
            content = (
                load_file(path)
                if path.suffix == CHECKPOINT_SUFFIX
                else torch.load(path, map_location="cpu", weights_only=True)
            )
    except Exception as error:  # a damaged pickle can raise any
        raise CheckpointError(
            f"{path} cannot be read as weights ({_reason(error)}); expected a {CHECKPOINT_SUFFIX} file, or what "
            "torch.save(network.state_dict(), FILE) writes"
        ) from error
    tensors = {str(name): value for name, value in _unwrapped(content).items() if _is_plain(value)}
    if not tensors:
        raise CheckpointError(
            f"{path} holds no tensors by name; expected what torch.save(network.state_dict(), FILE) writes"
        )
    names = set(wanted)  # those of a network may begin with such a prefix themselves
    while names.isdisjoint(tensors) and (prefix := _common_prefix(tensors)):
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors if not names.isdisjoint(tensors) else deployable_tensors(tensors) or tensors


def _common_prefix(names: Iterable[str]) -> str | None:
    return next((prefix for prefix in _WRAPPER_PREFIXES if all(name.startswith(prefix) for name in names)), None)


def _unwrapped(content: object) -> Mapping[Any, Any]:
    """The mapping that holds the tensors, where a trainer put it; an empty one if there is none."""
    if not isinstance(content, Mapping):
        return {}
    below = (content.get(key) for key in _WRAPPER_KEYS)
    return next((mapping for mapping in below if isinstance(mapping, Mapping)), content)


def _is_plain(value: object) -> bool:
    """Tell an ordinary tensor from sparse, meta and other kinds that a file can hold."""
    return (
        isinstance(value, Tensor)
        and type(value) in (Tensor, nn.Parameter)
        and value.layout == torch.strided
        and value.device.type == "cpu"
    )


def _fits(found: Tensor, wanted: Tensor) -> bool:
    """Tell whether it has the shape, and the same kind of numbers; floats of any precision are one kind."""
    both_floats = found.is_floating_point() and wanted.is_floating_point()
    return found.shape == wanted.shape and (both_floats or found.dtype == wanted.dtype)


def _reason(error: Exception) -> str:
    """Why a file cannot be read, without PyTorch's advice to read it unsafely."""
    if named := re.search(r"GLOBAL (\S+)", str(error)):
        return f"it asks for {named[1]}, and no code is run from a file"
    if isinstance(error, pickle.UnpicklingError | LookupError):
        return "it is damaged, or holds more than tensors"
    if "weights_only" in str(error):
        return "it is a TorchScript archive or a tar file of an old PyTorch, which can hold code"
    return one_line(error).partition(". ")[0][:120] or type(error).__name__  # what follows is advice


def _form(tensor: Tensor) -> str:
    shape = "×".join(map(str, tensor.shape)) or "one number"
    return shape if tensor.is_floating_point() else f"{shape} {str(tensor.dtype).removeprefix('torch.')}"


def shortened(items: Iterable[object]) -> str:
    """Return the first few of some items as text, and how many more there are."""
    texts = [str(item) for item in items]
    more = f" and {len(texts) - NAMES_SHOWN} more" if len(texts) > NAMES_SHOWN else ""
    return ", ".join(texts[:NAMES_SHOWN]) + more
