"""A card for a model that has none: from a file, or from the few values that only its user knows."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast, get_args

from segship.runtime.card import Head, ModelCard, Shape
from segship.runtime.errors import CardError
from segship.runtime.graph_form import Returned, Taken, head_of, in_words, returned_form, taken_form
from segship.runtime.model_file import OnnxHeader
from segship.runtime.palettes import distinct_colors
from segship.runtime.strict import parse

_MAX_NAMES_BYTES: Final = 4 << 20


@dataclass(frozen=True)
class CardValues:
    """What is said of a model by the options of the same names; None where nothing is.

    Attributes:
        class_names: separated by commas, or a text file (``.txt``) with one in each line; or a tuple of them.
        size: (height, width) in pixels that the network gets.
        mean: one number a channel, separated by commas: subtracted after scaling.
        std: likewise: divided by after that.
        color_order: ``RGB``, ``BGR`` or ``grey``.
        scale: ``full_scale`` or ``image_max``.
        depth: of the pictures, ``uint8`` (as where nothing is said) or ``uint16``.
        head: what the graph returns: ``logits``, ``probabilities`` or ``labels``.
        threshold: of a binary network, between 0 and 1.
        input_name: of the graph.
        output_name: likewise.
        resize: ``stretch`` (as where nothing is said), ``letterbox`` or ``pad``.
        fill: value of the pixels that the latter two add; 0 where nothing is said.
        stride: what sides must be multiples of where the graph leaves them open; 1 where nothing is said.
        output_stride: pixels of the input that one of the output stands for along each side; where nothing is said, as
            the graph shows it, or 1.
    """

    class_names: str | tuple[str, ...] | None = None
    size: tuple[int, int] | None = None
    mean: str | None = None
    std: str | None = None
    color_order: str | None = None
    scale: str | None = None
    depth: str | None = None
    head: str | None = None
    threshold: float | None = None
    input_name: str | None = None
    output_name: str | None = None
    resize: str | None = None
    fill: int | None = None
    stride: int | None = None
    output_stride: int | None = None

    def __bool__(self) -> bool:
        """Tell whether anything is said at all."""
        return any(value is not None for value in vars(self).values())

    def over(self, others: "CardValues") -> "CardValues":
        """Return these values and, where nothing is said, the others."""
        return dataclasses.replace(others, **{name: value for name, value in vars(self).items() if value is not None})


class MissingValuesError(CardError):
    """What cannot be told of a model, and was not said.

    Attributes:
        options: that would say it, each with what it may be.
    """

    def __init__(self, options: list[str]) -> None:
        super().__init__(
            f"the card lacks what only you know: give {', '.join(options)}; or a whole card: --card FILE.json"
        )
        self.options = options


def card_from_values(
    values: CardValues, header: OnnxHeader | None = None, endings: Mapping[str, str] | None = None
) -> ModelCard:
    """Make a card of what is said of a model and, where that is nothing, of what its graph says.

    Nothing is guessed that would change what a picture becomes: mean, standard deviation, order of colours and scale
    must be said, unless the graph takes pixels and normalises them itself; and so must the head where the graph does
    not show it. Two classes with a threshold, or with a graph that returns one plane for both, make a binary network.

    Args:
        values: what is said.
        header: of the ONNX file, if there is one already.
        endings: operators that its outputs come from; see :func:`segship.runtime.graph_endings.endings`.

    Raises:
        MissingValuesError: naming all values that are missing.
        CardError: if one is wrong, or the graph is none that segship can run.
    """
    known, taken = _completed(values, header, endings or {})
    if missing := _missing(known, header):
        raise MissingValuesError(missing)
    head = _head(known.head)
    names, size = _names(known.class_names or ()), known.size or (0, 0)
    output_name = known.output_name or head
    shape = header.outputs[output_name] if header else None
    planes = _planes(names, known.threshold)
    returned = returned_form(output_name, shape, head, planes, size, known.output_stride)
    is_binary = known.threshold is not None or (head != "labels" and (len(names), returned.planes) == (2, 1))
    plain: dict[str, Any] = {
        "class_names": names,
        "palette": distinct_colors(len(names)),
        "preprocess": _preprocess(known, taken),
        "task": "binary" if is_binary else "multiclass",
        "threshold": 0.5 if known.threshold is None else known.threshold,
        "head": head,
        "input_form": taken.form,
        "input_layout": None if taken.layout == ("NHWC" if taken.form == "pixels" else "NCHW") else taken.layout,
        "input_type": taken.dtype,
        "output_layout": None if returned.layout == ("NHW" if head == "labels" else "NCHW") else returned.layout,
        "output_stride": returned.stride,
        "dynamic": _dynamic(taken, returned) if header else (),
        "stride": known.stride or 1,
        "precision": "fp16" if taken.dtype == "float16" else "fp32",
        "ignore_index": 255 if len(names) <= 255 else 65535,
        "input_name": known.input_name or "image",
        "output_name": output_name,
    }
    return parse(ModelCard, plain, "card", CardError)


def read_card_file(path: Path) -> ModelCard:
    """Read a card from a JSON file.

    Raises:
        CardError: if it cannot be read, or is no valid card.
    """
    try:
        return ModelCard.from_json(path.read_text(encoding="utf-8"), origin=str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise CardError(f"{path}: the card cannot be read ({getattr(error, 'strerror', None) or error})") from error


def _completed(values: CardValues, header: OnnxHeader | None, endings: Mapping[str, str]) -> tuple[CardValues, Taken]:
    """Fill in what a graph says of itself where the user says nothing; and return what it takes."""
    if header is None:
        return values, taken_form("image", None, None)
    if len(header.inputs) != 1:
        raise CardError(
            f"the graph has {len(header.inputs)} inputs, {', '.join(header.inputs)}; expected a picture alone"
        )
    input_name = _name_in(header.inputs, values.input_name, "--input-name")
    taken = taken_form(input_name or "", header.inputs.get(input_name or ""), header.types.get(input_name or ""))
    output_name = _name_in(_maps(header.outputs), values.output_name, "--output-name")
    shape, dtype = header.outputs.get(output_name or ""), header.types.get(output_name or "")
    head = None if output_name is None else head_of(shape, dtype, endings.get(output_name, ""))
    is_pixels = taken.form == "pixels"
    told = CardValues(
        size=taken.size,
        head=head,
        depth=taken.depth,
        color_order="grey" if taken.channels == 1 else None,
        scale="full_scale" if is_pixels else None,  # of pixels, only what a graph does itself
        mean=",".join(["0"] * (taken.channels or 3)) if is_pixels else None,
        std=",".join(["1"] * (taken.channels or 3)) if is_pixels else None,
        input_name=input_name,
        output_name=output_name,
    )
    return values.over(told), taken


def _missing(values: CardValues, header: OnnxHeader | None) -> list[str]:
    """Name the options that must be given, and are not."""
    shape = header.outputs.get(values.output_name or "") if header else None
    needed: dict[str, object] = {
        f"--class-names (the graph returns {in_words(shape)})" if shape else "--class-names": values.class_names,
        "--size (the graph leaves it open)" if header else "--size": values.size,
        "--mean": values.mean,
        "--std": values.std,
        "--color-order": values.color_order,
        "--scale": values.scale,
        "--head": values.head,
    }
    if header and values.output_name is None:
        needed[f"--output-name ({_candidates(_maps(header.outputs))})"] = None
        needed.pop("--head")  # told, or asked for, once the output is known
    return [option for option, value in needed.items() if value is None]


def _maps(outputs: dict[str, Shape | None]) -> dict[str, Shape | None]:
    """Return the outputs that may hold something for each pixel."""
    maps = {name: shape for name, shape in outputs.items() if shape is None or len(shape) in (3, 4)}
    return maps or outputs


def _candidates(outputs: dict[str, Shape | None]) -> str:
    """Return outputs with their shapes; where all are alike, such as those of U²-Net, with which is mostly the one."""
    listed = ", ".join(f"{name} {in_words(shape)}" for name, shape in outputs.items())
    alike = f"; all are alike, and mostly the first, {next(iter(outputs))}, is the main one"
    return f"one of {listed}{alike if len(set(outputs.values())) == 1 else ''}"


def _name_in(names: dict[str, Shape | None], given: str | None, option: str) -> str | None:
    """Return the name that is given or, if there is only one, that one."""
    if given is not None and given not in names:
        raise CardError(f"{option} is {given!r}, but the graph has {', '.join(names)}")
    return next(iter(names)) if given is None and len(names) == 1 else given


def _head(text: str | None) -> Head:
    for head in get_args(Head):
        if text == head:
            return cast("Head", head)
    raise CardError(f"card.head is {text!r}; expected one of {', '.join(get_args(Head))}")


def _planes(names: list[str], threshold: float | None) -> tuple[int, ...]:
    """Return how many numbers a network of these classes may return for each pixel."""
    if threshold is not None:
        return (1,)
    return (2, 1) if len(names) == 2 else (len(names),)


def _preprocess(values: CardValues, taken: Taken) -> dict[str, Any]:
    if taken.form == "pixels" and values.color_order == "BGR":
        raise CardError(
            "the graph takes pixels, which segship hands over in the order red, green, blue, and --color-order is BGR; "
            "swap its channels inside the graph"
        )
    if taken.depth is not None and values.depth != taken.depth:
        raise CardError(f"--depth is {values.depth}, but the graph takes {taken.depth}")
    return {
        "size": values.size,
        "channels": taken.channels or (1 if values.color_order == "grey" else 3),
        "depth": values.depth or "uint8",
        "resize": values.resize or "stretch",
        "fill": values.fill or 0,
        "color_order": values.color_order,
        "scale": values.scale,
        "mean": _numbers(values.mean or "", "--mean"),
        "std": _numbers(values.std or "", "--std"),
    }


def _dynamic(taken: Taken, returned: Returned) -> list[str]:
    """Return the axes that a graph leaves open at both its ends."""
    is_open = {
        "batch": taken.has_open_batch and returned.has_open_batch,
        "size": taken.has_open_size and returned.has_open_size,
    }
    return [axis for axis, value in is_open.items() if value]


def _names(text: str | tuple[str, ...]) -> list[str]:
    if isinstance(text, tuple):
        return list(text)
    if not text.lower().endswith(".txt"):
        return [name.strip() for name in text.split(",")]
    path = Path(text)
    try:
        with path.open(encoding="utf-8-sig") as file:
            names = [line.strip() for line in file.read(_MAX_NAMES_BYTES).splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise CardError(
            f"--class-names: {path} cannot be read ({getattr(error, 'strerror', None) or error})"
        ) from error
    return [name for name in names if name]


def _numbers(text: str, option: str) -> list[float]:
    try:
        return [float(number) for number in text.split(",")]
    except ValueError:
        raise CardError(
            f"{option} is {text[:80]!r}; expected one number a channel, such as 0.485,0.456,0.406"
        ) from None
