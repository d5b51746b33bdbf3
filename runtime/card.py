"""The model card: everything a deployment must know, as one JSON text that travels inside the model file.

The text lies under the key ``segship`` in the ``metadata_props`` of an ONNX file and in the metadata of a
``.safetensors`` checkpoint. It is parsed strictly: unknown or missing keys, wrong types and sizes out of bounds are
errors, and nothing in it is ever evaluated.
"""

import dataclasses
import json
import sys
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from segship.runtime.errors import CardError
from segship.runtime.palettes import Color
from segship.runtime.preprocess import Preprocess

CARD_KEY: Final = "segship"
FORMAT_VERSION: Final = 1
MAX_CARD_BYTES: Final = 4 << 20
MAX_CLASSES: Final = 65535

Head = Literal["logits", "labels"]


@dataclass(frozen=True)
class Network:
    """Which network it is, enough to build it again.

    Attributes:
        arch: the name that ``seg-train --arch`` takes.
        options: the sizes it was built with, such as ``{"base_channels": 16}``.
    """

    arch: str
    options: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Provenance:
    """Where a model comes from.

    Attributes:
        checkpoint_sha256: of the checkpoint file that was exported; empty inside a checkpoint itself.
        dataset: what was given to ``--data``, without the folder.
        epoch: epoch after which the weights were taken, counted from 1; 0 if never trained.
        metrics: of the validation part, such as ``{"miou": 0.62}``, in 0…1.
        versions: of Python packages that made it.
    """

    checkpoint_sha256: str = ""
    dataset: str = ""
    epoch: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ModelCard:
    """Everything a deployment must know about a segmentation model.

    Attributes:
        class_names: of the classes 0…C−1.
        palette: (red, green, blue), 0…255, one for each class.
        preprocess: how a picture becomes the network's input.
        head: what the graph returns: ``logits`` (1, C, H, W) float32, or ``labels`` (1, H, W) class ids, uint8 up to
            256 classes and uint16 above.
        ignore_index: the id that means "no class" in training masks; a network never returns it.
        network: which network it is; None for a model that segship did not train.
        input_name: name of the graph's input, (1, C, H, W) float32.
        output_name: name of the graph's output.
        provenance: where the model comes from.
        format_version: of this card; older ones are read, newer ones are refused.
    """

    class_names: tuple[str, ...]
    palette: tuple[Color, ...]
    preprocess: Preprocess
    head: Head = "logits"
    ignore_index: int = 255
    network: Network | None = None
    input_name: str = "image"
    output_name: str = "logits"
    provenance: Provenance = field(default_factory=Provenance)
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        """Refuse values that contradict each other.

        Raises:
            CardError: naming the field, its value and what was expected.
        """
        if not 1 <= len(self.class_names) <= MAX_CLASSES:
            raise CardError(f"the card has {len(self.class_names)} class names; expected 1…{MAX_CLASSES}")
        if len(set(self.class_names)) < len(self.class_names):
            raise CardError("the card gives two classes the same name")
        if not 1 <= self.format_version <= FORMAT_VERSION:
            raise CardError(f"the card has format version {self.format_version}; expected 1…{FORMAT_VERSION}")
        if len(self.palette) != len(self.class_names):
            raise CardError(f"the card has {len(self.palette)} colours for {len(self.class_names)} classes")
        if not all(0 <= value <= 255 for color in self.palette for value in color):
            raise CardError("the card's palette has values outside 0…255")
        if 0 <= self.ignore_index < len(self.class_names):
            raise CardError(
                f"the card's ignore_index {self.ignore_index} is a class: {self.class_names[self.ignore_index]!r}"
            )

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    def to_json(self, *, indent: int | None = None) -> str:
        """Return the card as JSON text."""
        return json.dumps(dataclasses.asdict(self), ensure_ascii=False, indent=indent, allow_nan=False)

    @classmethod
    def from_json(cls, text: str, *, origin: str) -> "ModelCard":
        """Parse a card.

        Args:
            text: the JSON text.
            origin: where it came from, for messages.

        Raises:
            CardError: if the text is no valid card of a version this segship knows.
        """
        if len(text) > MAX_CARD_BYTES:
            raise CardError(f"{origin}: the card has {len(text)} characters; at most {MAX_CARD_BYTES} are read")
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise CardError(f"{origin}: the card is no valid JSON ({error})") from error
        if not isinstance(value, dict):
            raise CardError(f"{origin}: the card is a JSON {type(value).__name__}; expected an object")
        version = value.get("format_version")
        if isinstance(version, int) and version > FORMAT_VERSION:
            raise CardError(
                f"{origin}: the card has format version {version}; this segship reads up to {FORMAT_VERSION}; "
                "upgrade segship to use this model"
            )
        try:
            return typing.cast("ModelCard", _parse(cls, value, "card"))
        except CardError as error:
            raise CardError(f"{origin}: {error}") from None


def _parse(kind: Any, value: object, where: str) -> object:
    """Read ``value`` as the type ``kind``; one rule for each shape of type that the card's dataclasses use."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _parse_dataclass(kind, value, where)
    if origin is Literal:
        if value in arguments and isinstance(value, str):
            return value
        raise CardError(f"{where} is {value!r}; expected one of {', '.join(map(str, arguments))}")
    if origin in (typing.Union, types.UnionType):  # only "something or None" occurs
        inner = next(argument for argument in arguments if argument is not type(None))
        return None if value is None else _parse(inner, value, where)
    if origin is tuple and isinstance(value, list):
        endless = arguments[-1] is Ellipsis
        if not endless and len(value) != len(arguments):
            raise CardError(f"{where} has {len(value)} values; expected {len(arguments)}")
        kinds = [arguments[0]] * len(value) if endless else arguments
        return tuple(_parse(k, v, f"{where}[{i}]") for i, (k, v) in enumerate(zip(kinds, value, strict=True)))
    if origin is dict and isinstance(value, dict):
        return {key: _parse(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool) and _is_finite(value):
        return float(value)
    if kind in (int, str) and isinstance(value, kind) and not isinstance(value, bool):
        return value
    raise CardError(f"{where} is {str(value)[:80]!r}; expected {getattr(kind, '__name__', None) or kind}")


def _is_finite(value: float) -> bool:
    return abs(value) <= sys.float_info.max  # also tells of integers that no float can hold


def _parse_dataclass(kind: type, value: object, where: str) -> object:
    if not isinstance(value, Mapping):
        raise CardError(f"{where} is {str(value)[:80]!r}; expected an object")
    hints = typing.get_type_hints(kind)
    if unknown := sorted(set(value) - set(hints)):
        raise CardError(f"{where} has the unknown key {unknown[0]!r}; known are {', '.join(hints)}")
    required = {
        f.name
        for f in dataclasses.fields(kind)
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    }
    if missing := sorted(required - set(value)):
        raise CardError(f"{where} lacks {', '.join(missing)}")
    return kind(**{name: _parse(hints[name], item, f"{where}.{name}") for name, item in value.items()})
