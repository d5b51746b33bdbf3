"""What the graph of an ONNX file shows of its own form: what it takes, what it returns, and which of it is open."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from segship.runtime.card import MAX_OUTPUT_STRIDE, Head, InputForm, InputLayout, InputType, OutputLayout, Shape
from segship.runtime.errors import CardError
from segship.runtime.preprocess import Depth

_FLOATS: Final[dict[str | None, InputType]] = {None: "float32", "float32": "float32", "float16": "float16"}
_PIXELS: Final[dict[str | None, Depth]] = {"uint8": "uint8", "uint16": "uint16"}
_COLORS: Final = (1, 3)

_MAKES_LOGITS: Final = frozenset({"Add", "BatchNormalization", "Conv", "ConvTranspose", "Gemm", "LogSoftmax", "MatMul"})
_MAKES_LABELS: Final = frozenset({"ArgMax", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "TopK"})


@dataclass(frozen=True)
class Taken:
    """What a graph takes.

    Attributes:
        form: floats, or pixels of ``depth``.
        layout: order of its axes.
        dtype: of floats; of pixels it means nothing.
        depth: of pixels; None for floats.
        channels: None where they are open.
        size: (height, width); None where either is open.
        has_open_batch: whether it takes any number of pictures.
        has_open_size: whether it takes any height and width.
    """

    form: InputForm
    layout: InputLayout
    dtype: InputType
    depth: Depth | None
    channels: int | None
    size: tuple[int, int] | None
    has_open_batch: bool
    has_open_size: bool


@dataclass(frozen=True)
class Returned:
    """What a graph returns.

    Attributes:
        layout: order of its axes.
        planes: numbers that it returns for each pixel.
        stride: pixels of the input that one of the output stands for, along each side.
        has_open_batch: whether it may be of any number of pictures.
        has_open_size: whether it may have any height and width.
    """

    layout: OutputLayout
    planes: int
    stride: int
    has_open_batch: bool
    has_open_size: bool


def taken_form(name: str, shape: Shape | None, dtype: str | None) -> Taken:
    """Tell what a graph takes from its input's shape and type; what is not told is taken as ONNX has it mostly.

    Raises:
        CardError: if it takes no pictures: one at a time or any number of them, of one or three channels.
    """
    if dtype not in _FLOATS and dtype not in _PIXELS:
        raise CardError(f"the graph takes {name} as {dtype}; expected float32, float16, uint8 or uint16")
    form: InputForm = "pixels" if dtype in _PIXELS else "float"
    is_told = shape is not None
    shape = (None,) * 4 if shape is None else shape
    if len(shape) != 4:
        raise CardError(f"the graph takes {name} of the shape {in_words(shape)}; expected pictures, with four axes")
    first, last = shape[1], shape[3]
    is_last = (last in _COLORS and first not in _COLORS) or (form == "pixels" and first is None)
    channels, (height, width) = (last, shape[1:3]) if is_last else (first, shape[2:])
    if channels not in (*_COLORS, None):
        raise CardError(f"the graph takes {name} of the shape {in_words(shape)}; expected 1 or 3 channels")
    if shape[0] not in (1, None):
        raise CardError(
            f"the graph takes {shape[0]} pictures at a time; expected one, or any number: export it again with a batch "
            "of 1, or an open one"
        )
    return Taken(
        form=form,
        layout="NHWC" if is_last else "NCHW",
        dtype=_FLOATS.get(dtype, "float32"),
        depth=_PIXELS.get(dtype),
        channels=channels,
        size=None if height is None or width is None else (height, width),
        has_open_batch=is_told and shape[0] is None,
        has_open_size=is_told and height is None and width is None,
    )


def head_of(shape: Shape | None, dtype: str | None, ending: str) -> Head | None:
    """Tell what a graph returns from its output's shape and type and from the operator that makes it.

    Args:
        shape: of the output.
        dtype: of its elements.
        ending: as :func:`segship.runtime.graph_endings.endings` names it; empty where nothing is known of it.

    Returns:
        The head, or None where it cannot be told.
    """
    if ending in _MAKES_LABELS:
        return "labels"
    if dtype not in (*_FLOATS, "float64", "bfloat16"):  # whole numbers: ids, or a mask of 0…255
        return None if ending else "labels"
    if ending == "Softmax" or (ending == "Sigmoid" and _has_one_plane(shape)):
        return "probabilities"
    if ending in _MAKES_LOGITS:
        return "logits"
    return "labels" if shape is not None and len(shape) == 3 and not ending else None


def returned_form(
    name: str, shape: Shape | None, head: Head, planes: tuple[int, ...], size: tuple[int, int], stride: int | None
) -> Returned:
    """Tell in what form a graph returns what is known to be ``head``.

    Args:
        name: of the output.
        shape: of it.
        head: what it holds.
        planes: how many numbers there may be for each pixel, the likeliest first; for labels it is always one.
        size: (height, width) of what the graph takes.
        stride: as it is given; None: as the shape shows it, or 1.

    Raises:
        CardError: if the shape fits none of this.
    """
    allowed = (1,) if head == "labels" else planes
    if shape is None:
        return Returned(
            "NHW" if head == "labels" else "NCHW", allowed[0], stride or 1, True, True
        )  # as the input has them
    for told in (True, False):  # an order in which the graph names the number goes before one that leaves it open
        for layout, channels, sides in _readings(shape):
            count = next((count for count in allowed if channels == (count if told else None)), None)
            found = stride or _stride(size, sides)
            if count is not None and found is not None:
                return Returned(layout, count, found, shape[0] is None, sides == (None, None))
    wanted = " or ".join(map(str, allowed))
    raise CardError(
        f"the graph returns {name} {in_words(shape)}, which cannot be {head} of pictures of {size[0]}×{size[1]} with "
        f"{wanted} for each pixel; check --class-names, --head, --size and --output-name"
    )


def in_words(shape: Shape | None) -> str:
    """Return a shape as text; open sides are question marks."""
    return (
        "of unknown shape" if shape is None else f"({', '.join('?' if side is None else str(side) for side in shape)})"
    )


def _readings(shape: Shape) -> Iterator[tuple[OutputLayout, int | None, tuple[int | None, ...]]]:
    """Yield the orders of axes that a shape may have, the likeliest first, with its channels and (height, width)."""
    if len(shape) == 3:
        yield "NHW", 1, shape[1:]
    if len(shape) == 4:
        yield "NCHW", shape[1], shape[2:]
        yield "NHWC", shape[3], shape[1:3]


def _has_one_plane(shape: Shape | None) -> bool:
    return shape is not None and (len(shape) == 3 or (len(shape) == 4 and 1 in (shape[1], shape[3])))


def _stride(taken: tuple[int, int], returned: tuple[int | None, ...]) -> int | None:
    """Return what the input's sides are divided by, rounded up; 1 where that is open, None where nothing fits."""
    for stride in range(1, MAX_OUTPUT_STRIDE + 1):
        if all(out in (None, -(-side // stride)) for side, out in zip(taken, returned, strict=True)):
            return stride
    return None
