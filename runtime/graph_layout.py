"""Between segship's order of axes and types and those of a graph that segship did not make.

Of a graph of segship's own nothing is changed and nothing copied.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from segship.runtime.card import ModelCard
from segship.runtime.errors import BackendError
from segship.runtime.labels import resize_labels, upscale


def to_graph(batch: NDArray[Any], card: ModelCard) -> NDArray[Any]:
    """Return what the graph takes, contiguous.

    Args:
        batch: network's inputs (N, C, h, w) float32; for a card of pixels, pictures (N, h, w, C) uint8 or uint16.
        card: says in what order and type the graph takes them.
    """
    own = "NHWC" if card.input_form == "pixels" else "NCHW"
    return np.ascontiguousarray(_reordered(batch, own, card.input_axes), card.input_dtype)


def from_graph(output: NDArray[Any], card: ModelCard) -> NDArray[Any]:
    """Return what the graph returned in segship's order and, if it is made of floats, as float32; contiguous.

    Args:
        output: as an engine returned it.
        card: says in what order it comes.

    Returns:
        Logits or probabilities (N, K, h, w), or labels (N, h, w) of the type that the graph gives them.

    Raises:
        BackendError: if it has another number of axes than the card says.
    """
    axes = card.output_axes
    if output.ndim != len(axes) or (card.head == "labels" and "C" in axes and output.shape[axes.index("C")] != 1):
        raise BackendError(
            f"the graph returned an array of the shape {output.shape}; its card promises {card.head} in the order "
            f"{', '.join(axes)}: {card.output_shape}"
        )
    if axes == "NHW":
        planes = output if card.head == "labels" else output[:, None]
    else:
        planes = _reordered(output, axes, "NCHW")
        planes = planes[:, 0] if card.head == "labels" else planes
    is_float = card.head != "labels" and planes.dtype.kind == "f"
    return np.ascontiguousarray(planes, np.float32 if is_float else planes.dtype)


def expected_shape(card: ModelCard, count: int) -> tuple[int, ...]:
    """Return the shape that :func:`from_graph` gives of so many pictures: (N, K, h, w), or (N, h, w) of labels."""
    height, width = (-(-side // card.output_stride) for side in card.frame or card.preprocess.size)
    return (count, height, width) if card.head == "labels" else (count, card.num_logits, height, width)


def of_picture(output: NDArray[Any], card: ModelCard, shape: tuple[int, ...]) -> NDArray[Any]:
    """Cut what a network says of a picture out of what it says of its whole input; without a copy where it can be.

    What letterboxing and padding added goes. A map that is smaller than the input is brought to its size before, since
    the picture's edges lie between the pixels of the smaller one; ids by the nearest pixel, all else linearly.

    Args:
        output: of one picture, logits (K, h, w) or labels (h, w), as :func:`from_graph` gives them.
        card: of the model.
        shape: of the picture, (H, W) or (H, W, C).
    """
    form = card.preprocess
    if form.resize == "stretch":
        return output
    if output.shape[-2:] != form.size:
        if card.head == "labels":
            output = resize_labels(output, form.size)
        else:
            output = np.stack([upscale(plane, form.size) for plane in output])
    rows, columns = form.content(shape)
    return output[..., rows, columns]


def _reordered(array: NDArray[Any], axes: str, wanted: str) -> NDArray[Any]:
    return array.transpose([axes.index(axis) for axis in wanted])
