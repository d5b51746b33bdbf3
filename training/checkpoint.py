"""Checkpoints: one ``.safetensors`` file of weights with the model card in its metadata. No code runs on loading."""

import dataclasses
import hashlib
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from segship.runtime.card import CARD_KEY, ModelCard
from segship.runtime.errors import CheckpointError, ModelError, one_line
from segship.runtime.model_file import CHECKPOINT_SUFFIX, read_card
from segship.training.networks import build_network
from segship.training.state import deployable_tensors, save_tensors


def save_checkpoint(path: Path, network: nn.Module, card: ModelCard) -> None:
    """Write weights and card, whole or not at all, and wait until they are on the disk.

    Raises:
        OutputError: if they cannot be written.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    save_tensors(path, tensors, {CARD_KEY: card.to_json()})


def load_checkpoint(path: Path) -> tuple[nn.Module, ModelCard]:
    """Build the network of a checkpoint, in evaluation mode on the CPU, and read its card.

    Of a run's state it is the network that would be deployed. The card's provenance gets the sha-256 of the file.

    Raises:
        CheckpointError: if the file is missing, damaged, or its weights do not fit its network.
        CardError: if it carries no valid card.
    """
    if path.suffix != CHECKPOINT_SUFFIX:
        raise CheckpointError(f"{path} is no checkpoint of seg-train; expected a {CHECKPOINT_SUFFIX} file")
    try:
        card = read_card(path)
        tensors = load_file(path)
        tensors = deployable_tensors(tensors) or tensors
    except (ModelError, SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read as a checkpoint ({error})") from error
    if card.network is None:
        raise CheckpointError(f"{path}: its card names no network, so it cannot be built")
    with torch.device("meta"):  # sizes come from the file: nothing is allocated before they are found to fit
        network = build_network(card.network, num_classes=card.num_logits, in_channels=card.preprocess.channels)
    types = {name: tensor.dtype for name, tensor in network.state_dict().items()}
    try:
        network.load_state_dict(tensors, assign=True)
    except RuntimeError as error:
        raise CheckpointError(f"{path}: its weights do not fit {card.network.arch} ({one_line(error)})") from error
    for name, tensor in network.state_dict().items():
        if tensor.dtype != types[name]:
            raise CheckpointError(f"{path}: {name} is of the type {tensor.dtype}; expected {types[name]}")
    provenance = dataclasses.replace(card.provenance, checkpoint_sha256=file_sha256(path))
    return network.eval(), dataclasses.replace(card, provenance=provenance)


def file_sha256(path: Path) -> str:
    """Return the sha-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
