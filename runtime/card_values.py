"""A card for a model that has none: from a file, or from the few values that only its user knows."""

import dataclasses
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from segship.runtime.card import ModelCard, Shape
from segship.runtime.errors import CardError
from segship.runtime.model_file import OnnxHeader
from segship.runtime.palettes import MAX_DISTINCT_COLORS, Color, distinct_colors
from segship.runtime.strict import parse

_MAX_NAMES_BYTES: Final = 4 << 20


@dataclass(frozen=True)
class CardValues:
    """What is said of a model by the options of the same names; None where nothing is.

    Attributes:
        class_names: separated by commas, or a text file (``.txt``) with one in each line.
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
    """

    class_names: str | None = None
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

    def __bool__(self) -> bool:
        """Tell whether anything is said at all."""
        return any(value is not None for value in vars(self).values())


def card_from_values(values: CardValues, header: OnnxHeader | None = None) -> ModelCard:
    """Make a card of what is said of a model and, where that is nothing, of what its graph says.

    Nothing is guessed that would change what a picture becomes: mean, standard deviation, order of colours and scale
    must be said, and so must the head where the graph does not show that it returns labels. Two classes with a
    threshold, or with a graph that returns one plane for both, make a binary network.

    Args:
        values: what is said.
        header: of the ONNX file, if there is one already.

    Raises:
        CardError: naming all values that are missing; or the first that is wrong.
    """
    known = values if header is None else _completed(values, header)
    if missing := _missing(known, header):
        raise CardError(
            f"the card lacks what only you know: give {', '.join(missing)}; or a whole card: --card FILE.json"
        )
    input_name, output_name = known.input_name or "image", known.output_name or known.head
    takes, returns = (header.inputs[input_name], header.outputs[output_name or ""]) if header else (None, None)
    names = _names(known.class_names or "")
    is_binary = known.threshold is not None or (len(names) == 2 and returns is not None and returns[1:2] == (1,))
    plain: dict[str, Any] = {
        "class_names": names,
        "palette": _palette(len(names)),
        "preprocess": {
            "size": known.size,
            "channels": 1 if known.color_order == "grey" else 3,
            "depth": known.depth or "uint8",
            "color_order": known.color_order,
            "scale": known.scale,
            "mean": _numbers(known.mean or "", "--mean"),
            "std": _numbers(known.std or "", "--std"),
        },
        "task": "binary" if is_binary else "multiclass",
        "threshold": 0.5 if known.threshold is None else known.threshold,
        "head": known.head,
        "input_form": "pixels" if _takes_pixels(takes) else "float",
        "ignore_index": 255 if len(names) <= 255 else 65535,
        "input_name": input_name,
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


def _completed(values: CardValues, header: OnnxHeader) -> CardValues:
    """Fill in what a graph says of itself where the user says nothing."""
    input_name = _name_in(header.inputs, values.input_name, "--input-name")
    output_name = _name_in(header.outputs, values.output_name, "--output-name")
    takes, returns = header.inputs.get(input_name or ""), header.outputs.get(output_name or "")
    size, head = values.size, values.head
    if size is None and takes is not None and len(takes) == 4:
        height, width = takes[1:3] if _takes_pixels(takes) else takes[2:]
        size = None if height is None or width is None else (height, width)
    if head is None and returns is not None and len(returns) == 3:
        head = "labels"
    return dataclasses.replace(values, size=size, head=head, input_name=input_name, output_name=output_name)


def _missing(values: CardValues, header: OnnxHeader | None) -> list[str]:
    """Name the options that must be given, and are not."""
    needed: dict[str, object] = {
        "--class-names": values.class_names,
        "--size (the graph leaves it open)" if header else "--size": values.size,
        "--mean": values.mean,
        "--std": values.std,
        "--color-order": values.color_order,
        "--scale": values.scale,
        "--head": values.head,
    }
    if header:
        needed[f"--input-name (one of {', '.join(header.inputs)})"] = values.input_name
        needed[f"--output-name (one of {', '.join(header.outputs)})"] = values.output_name
    return [option for option, value in needed.items() if value is None]


def _name_in(names: dict[str, Shape | None], given: str | None, option: str) -> str | None:
    """Return the name that is given or, if there is only one, that one."""
    if given is not None and given not in names:
        raise CardError(f"{option} is {given!r}, but the graph has {', '.join(names)}")
    return next(iter(names)) if given is None and len(names) == 1 else given


def _takes_pixels(shape: Shape | None) -> bool:
    """Tell whether a graph that takes this shape takes pixels (N, h, w, C); if it does not say, it takes floats."""
    return shape is not None and len(shape) == 4 and shape[3] in (1, 3) and shape[1] not in (1, 3)


def _names(text: str) -> list[str]:
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


def _palette(count: int) -> list[Color]:
    colors = distinct_colors(min(count, MAX_DISTINCT_COLORS))
    return list(itertools.islice(itertools.cycle(colors), count))


def _numbers(text: str, option: str) -> list[float]:
    try:
        return [float(number) for number in text.split(",")]
    except ValueError:
        raise CardError(
            f"{option} is {text[:80]!r}; expected one number a channel, such as 0.485,0.456,0.406"
        ) from None
