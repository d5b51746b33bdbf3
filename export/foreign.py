"""Any network: a ``torch.nn.Module`` that segship did not define, its weights, and a card for it."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn

from segship.export.foreign_code import build_foreign, foreign_code
from segship.runtime.card import ModelCard, Provenance
from segship.runtime.card_values import CardValues, card_from_values, read_card_file
from segship.runtime.errors import CardError, CheckpointError, ExportError
from segship.training.checkpoint import file_sha256
from segship.training.initialise import initialise, shortened
from segship.training.networks.sizes import resize_like
from segship.training.scores_report import package_versions

IMAGENET: Final = "imagenet"
IMAGENET_MEAN: Final = "0.485,0.456,0.406"
IMAGENET_STD: Final = "0.229,0.224,0.225"

_COUNTER: Final = "num_batches_tracked"
"""How many batches a batch norm has seen, which only training asks for; old files lack it."""


def load_foreign(target: str, weights: Path | None, card: ModelCard) -> tuple[nn.Module, ModelCard]:
    """Build a network that segship did not define, in evaluation mode on the CPU, and run it once on noise.

    Importing it runs the code of its author: that is what is asked for.

    Args:
        target: ``package.module:callable`` or ``path/to/file.py:callable``, with the current folder importable. What
            is called returns an ``nn.Module``, such as its class does; ``nets.py:make(classes=19)`` hands on values.
        weights: a ``.safetensors`` file or a state dict as ``torch.save`` writes it, from which no code is run. It must
            have every tensor of the network, and no others. None: the callable has loaded them.
        card: see :func:`foreign_card`.

    Returns:
        The network, which maps pictures (N, C, h, w) to a tuple whose only member is its main logits (N, K, h, w),
        float32: see :class:`ForeignNetwork`. And the card, with the sha-256 of the weights; it is a binary one if there
        is a single logit for two class names.

    Raises:
        ExportError: if it cannot be built or run, or does not return logits for the card's classes.
        CheckpointError: if the weights cannot be read, or are not this network's.
    """
    network = build_foreign(target)
    if weights is not None:
        _load_weights(network, weights)
    foreign = ForeignNetwork(network).eval()
    card = _checked(foreign, card, target)
    provenance = Provenance(file_sha256(weights) if weights else "", versions=package_versions())
    return foreign, dataclasses.replace(card, network=None, provenance=provenance)


def foreign_card(
    *,
    class_names: str | None = None,
    size: tuple[int, int] | None = None,
    mean: str | None = None,
    std: str | None = None,
    card_path: Path | None = None,
) -> ModelCard:
    """Make the card of a network that segship did not train, of what only its user knows.

    Nothing is guessed: a network that was given values of 0…1 has the mean 0,0,0 and the standard deviation 1,1,1.
    Pictures are taken to be 8-bit ones that are divided by 255, in red, green, blue, or grey where mean and standard
    deviation are single numbers; anything else is said by a card file.

    Args:
        class_names: separated by commas, or a text file (``.txt``) with one in each line.
        size: (height, width) in pixels that the network gets; overrules that of a card file.
        mean: one number a channel, separated by commas: subtracted after scaling to 0…1. ``imagenet``: torchvision's.
        std: likewise: divided by after that. It need not be given where the mean is ``imagenet``.
        card_path: a whole card as a JSON file, in place of names, mean and standard deviation. What it says of another
            file's graph (head, form of the input, open axes but their stride, certificate) is left out.

    Raises:
        CardError: naming all values that are missing; or the first that is wrong.
    """
    if card_path is not None:
        if (class_names, mean, std) != (None, None, None):
            raise CardError("--card holds a whole card: give it alone or with --size, or give values in its place")
        return _as_trained(read_card_file(card_path), size)
    if std is None and mean == IMAGENET:
        std = IMAGENET
    mean, std = IMAGENET_MEAN if mean == IMAGENET else mean, IMAGENET_STD if std == IMAGENET else std
    color_order = "RGB" if mean is None or "," in mean else "grey"
    return card_from_values(
        CardValues(class_names, size, mean, std, color_order=color_order, scale="full_scale", head="logits")
    )


class ForeignNetwork(nn.Module):
    """A network that returns its logits in some way, as one that returns them in ours.

    Args:
        module: returns logits (N, K, h', w'): alone, first in a tuple or list, as ``logits`` of an object, or in a
            mapping as ``out``, ``logits`` or all there is. They may be smaller than the picture.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, image: Tensor) -> tuple[Tensor]:
        """Map pictures (N, C, h, w) to logits (N, K, h, w), brought to that size bilinearly, corners not aligned."""
        return (resize_like(self.logits(image), image),)

    def logits(self, image: Tensor) -> Tensor:
        """Map pictures (N, C, h, w) to logits of the size in which the module returns them.

        Raises:
            ExportError: if they are not found in what it returns.
        """
        output = self.module(image)
        found = _main(output)
        if not isinstance(found, Tensor):
            raise ExportError(
                f"the network returned {_described(output)}; expected logits: a tensor, the first of a tuple, "
                "'out' or 'logits' of a mapping, or an attribute logits"
            )
        return found


def _as_trained(card: ModelCard, size: tuple[int, int] | None) -> ModelCard:
    """Return what a card says of a network, and not what it says of a graph."""
    form = card.preprocess if size is None else dataclasses.replace(card.preprocess, size=size)
    return ModelCard(
        card.class_names,
        card.palette,
        form,
        task=card.task,
        threshold=card.threshold,
        tile_overlap=card.tile_overlap,
        stride=card.stride,
        ignore_index=card.ignore_index,
    )


def _main(output: object) -> object:
    """Find the main logits in what a network returns; what is returned is no tensor if there are none."""
    if isinstance(output, Mapping):
        key = next((key for key in ("out", "logits") if key in output), None)
        return output[key] if key else next(iter(output.values())) if len(output) == 1 else None
    if hasattr(output, "logits"):
        return output.logits
    return next(iter(output), None) if isinstance(output, tuple | list) else output


def _load_weights(network: nn.Module, path: Path) -> None:
    """Load weights of which every one has its place, and every place its weights."""
    report = initialise(network, path)
    faults = {
        "the file lacks": [name for name in report.missing if not name.endswith(_COUNTER)],
        "only the file has": report.unused,
        "of another shape are": report.misfits,
    }
    if found := "; ".join(f"{what} {shortened(names)}" for what, names in faults.items() if names):
        raise CheckpointError(
            f"{path}: its weights are not those of this network: {found}; expected the same names and shapes in both"
        )


def _checked(network: ForeignNetwork, card: ModelCard, target: str) -> ModelCard:
    """Run a network once on noise of the card's size, and look whether it returns what the card says."""
    form = card.preprocess
    noise = torch.randn(1, form.channels, *form.size, generator=torch.Generator().manual_seed(0))
    with foreign_code(f"running {target} on a picture {_shape(noise)}"), torch.inference_mode():
        logits = network.logits(noise)
    if logits.shape[1:2] == (1,) and card.num_classes == 2:
        card = dataclasses.replace(card, task="binary")
    expected = f"expected logits (1, {card.num_logits}, h, w) float32, {_meaning(card)}"
    got = f"{target} returned {_described(logits)}"
    if logits.ndim != 4 or logits.shape[0] != 1 or logits.dtype != torch.float32:
        raise ExportError(f"{got} for a picture {_shape(noise)}; {expected}, before any argmax")
    if logits.shape[1] != card.num_logits:
        raise ExportError(f"{got}; {expected}: give as many class names as it has logits, in their order")
    if not _is_share(logits.shape[2:], form.size):
        raise ExportError(
            f"{got} for a picture {_shape(noise)}; expected the picture's size or a whole share of it, such as a "
            "quarter; what a network crops has to be padded in it, or labels would be shifted"
        )
    if not torch.isfinite(logits).all():
        raise ExportError(f"{target} returned values that are no numbers (NaN or infinite); its weights are bad")
    if _are_probabilities(logits):
        raise ExportError(
            f"{target} returned values of {logits.min():.3g}…{logits.max():.3g}, as probabilities are; expected "
            "logits: leave out its last softmax or sigmoid, which --head probabilities adds"
        )
    return card


def _is_share(size: torch.Size, of: tuple[int, int]) -> bool:
    """Tell whether sides are those of a picture divided by one whole number, rounded up or down."""
    sides = list(zip(size, of, strict=True))
    return any(
        all(side in (whole // divisor, -(-whole // divisor)) for side, whole in sides)
        for divisor in range(1, min(of) + 1)
    )


def _are_probabilities(logits: Tensor) -> bool:
    """Tell whether values add up to 1 over the classes or, of a single plane, all lie in 0…1."""
    if not 0 <= logits.min() <= logits.max() <= 1:
        return False
    return logits.shape[1] == 1 or bool((logits.sum(dim=1) - 1).abs().max() < 1e-4)


def _meaning(card: ModelCard) -> str:
    return f"of {card.class_names[1]}" if card.task == "binary" else f"one for each of {card.num_classes} classes"


def _described(value: object) -> str:
    if isinstance(value, Tensor):
        return f"{_shape(value)} {str(value.dtype).removeprefix('torch.')}"
    if isinstance(value, Mapping):
        return f"a mapping with {shortened(value)}"
    return f"an object of the type {type(value).__name__}"


def _shape(tensor: Tensor) -> str:
    return f"({', '.join(map(str, tensor.shape))})"
