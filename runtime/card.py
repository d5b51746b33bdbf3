"""The model card: everything a deployment must know, as one JSON text that travels inside the model file.

The text lies under the key ``segship`` in the ``metadata_props`` of an ONNX file and in the metadata of a
``.safetensors`` checkpoint. It is parsed strictly: unknown or missing keys, wrong types and sizes out of bounds are
errors, and nothing in it is ever evaluated.
"""

import dataclasses
import json
import math
from dataclasses import dataclass, field
from typing import Final, Literal, TypeVar

from segship.runtime.certificate import Certificate
from segship.runtime.errors import CardError
from segship.runtime.palettes import Color
from segship.runtime.preprocess import MAX_SIDE_PX, Preprocess
from segship.runtime.strict import parse

CARD_KEY: Final = "segship"
FORMAT_VERSION: Final = 4
MAX_CARD_BYTES: Final = 4 << 20
MAX_CLASSES: Final = 65535
MAX_TILE_OVERLAP: Final = 0.9
MAX_OUTPUT_STRIDE: Final = 64

Head = Literal["logits", "probabilities", "labels"]
Task = Literal["multiclass", "binary"]
InputForm = Literal["float", "pixels"]
InputLayout = Literal["NCHW", "NHWC"]
InputType = Literal["float32", "float16"]
OutputLayout = Literal["NCHW", "NHWC", "NHW"]
DynamicAxis = Literal["batch", "size"]
Precision = Literal["fp32", "fp16", "int8"]

Side = TypeVar("Side", int, int | None)

Shape = tuple[int | None, ...]
"""Sizes of a tensor's axes; None where they are left open."""


@dataclass(frozen=True)
class Network:
    """Which network it is, enough to build it again.

    Attributes:
        arch: the name that ``seg-train --arch`` takes.
        options: what it was built with, such as ``{"base_channels": 16}`` or ``{"backbone": "vgg16"}``.
    """

    arch: str
    options: dict[str, int | str] = field(default_factory=dict)


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
        task: ``multiclass``: a logit for each class, and the largest one wins; ``binary``: a single logit, that of the
            second of the two classes, which wins where its sigmoid is above ``threshold``.
        threshold: of a binary network, between 0 and 1.
        tile_overlap: None: the network sees whole pictures, brought to ``preprocess.size``. A number in 0…0.9: it was
            trained on parts of that size at the pictures' own resolution, so pictures are cut into tiles of that size
            that overlap by this share, and their logits are blended.
        head: what the graph returns: ``logits`` (N, K, h, w) float32, K the number of logits; ``probabilities`` of the
            same shape, 0…1, the softmax or, of a binary network, the sigmoid of them; or ``labels`` (N, h, w) class
            ids, uint8 up to 256 classes and uint16 above. Graphs of other origin may return them in other types.
        input_form: what the graph takes: ``float``: the network's input (N, C, h, w) float32, resized and normalised;
            ``pixels``: pictures as they are decoded, (N, h, w, C) in red, green, blue order and of the depth that
            ``preprocess`` names, which the graph normalises itself.
        input_layout: order of the axes of what the graph takes; None: as the form has it, NCHW of floats and NHWC of
            pixels. Graphs of segship's own have None, here and in the next three; others have what they have.
        input_type: of the floats that the graph takes: ``float32`` or ``float16``.
        output_layout: order of the axes of what the graph returns; None: as the head has it, NHW of labels and NCHW of
            the others. ``NHW`` fits labels and binary networks; NCHW and NHWC labels have a channel axis of 1.
        output_stride: how many pixels of the input one of the output stands for along each side, such as SegFormer's 4;
            the output's sides are those of the input divided by it, rounded up.
        frame: None: h and w are those of ``preprocess.size``. (height, width): the graph resizes pictures of this size
            to the network's itself and brings what it returns back; its pixels come at the frame's size.
        dynamic: axes that the graph leaves open: ``batch``, its N, which is 1 otherwise; ``size``, its h and w, which
            must then be multiples of ``stride``.
        stride: what sides must be a multiple of where they are open; ``preprocess.size`` is what they are by default.
        precision: what the graph computes in, at its widest places: its input and output are float32 all the same,
            unless ``input_type`` says something else.
        ignore_index: the id that means "no class" in training masks; a network never returns it.
        network: which network it is; None for a model that segship did not train.
        input_name: name of the graph's input.
        output_name: name of the graph's output.
        provenance: where the model comes from.
        certificate: what was compared with PyTorch at export; None in a checkpoint.
        format_version: the one that this segship writes; cards of older ones are read as cards of this one.
    """

    class_names: tuple[str, ...]
    palette: tuple[Color, ...]
    preprocess: Preprocess
    task: Task = "multiclass"
    threshold: float = 0.5
    tile_overlap: float | None = None
    head: Head = "logits"
    input_form: InputForm = "float"
    input_layout: InputLayout | None = None
    input_type: InputType = "float32"
    output_layout: OutputLayout | None = None
    output_stride: int = 1
    frame: tuple[int, int] | None = None
    dynamic: tuple[DynamicAxis, ...] = ()
    stride: int = 1
    precision: Precision = "fp32"
    ignore_index: int = 255
    network: Network | None = None
    input_name: str = "image"
    output_name: str = "logits"
    provenance: Provenance = field(default_factory=Provenance)
    certificate: Certificate | None = None
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
        if self.task == "binary" and len(self.class_names) != 2:
            raise CardError(f"the card's task is binary, and it has {len(self.class_names)} class names; expected 2")
        if not 0 < self.threshold < 1:
            raise CardError(f"the card's threshold is {self.threshold}; expected a number between 0 and 1")
        if 0 <= self.ignore_index < len(self.class_names):
            raise CardError(
                f"the card's ignore_index {self.ignore_index} is a class: {self.class_names[self.ignore_index]!r}"
            )
        if self.tile_overlap is not None:
            self._check_tiles(self.tile_overlap)
        if self.frame is not None:
            self._check_frame(self.frame)
        self._check_graph()

    def _check_tiles(self, overlap: float) -> None:
        if not 0 <= overlap <= MAX_TILE_OVERLAP:
            raise CardError(f"the card's tile_overlap is {overlap}; expected 0…{MAX_TILE_OVERLAP}")
        if self.head != "logits" or self.frame is not None:
            raise CardError(
                f"the card's tile_overlap is {overlap} and its {'frame' if self.frame else 'head'} "
                f"{self.frame or self.head}, but tiles can only be blended by their logits; export with --head logits"
            )
        if self.preprocess.resize != "stretch":
            raise CardError(
                f"the card's tile_overlap is {overlap} and its preprocess.resize {self.preprocess.resize}, but tiles "
                "have the network's size already; leave resize out"
            )

    def _check_frame(self, frame: tuple[int, int]) -> None:
        if self.input_form != "pixels" or "size" in self.dynamic:
            raise CardError("the card has a frame, so its input must be pixels and its size not dynamic")
        if not all(1 <= side <= MAX_SIDE_PX for side in frame):
            raise CardError(f"the card's frame is {frame}; each side must lie in 1…{MAX_SIDE_PX} pixels")
        if self.preprocess.resize != "stretch" or self.output_stride != 1:
            raise CardError(
                f"the card has a frame, and resize {self.preprocess.resize} and output_stride {self.output_stride}; "
                "graphs only stretch frames, and return maps of their size: expected stretch and 1"
            )

    def _check_graph(self) -> None:
        if not 1 <= self.output_stride <= MAX_OUTPUT_STRIDE:
            raise CardError(f"the card's output_stride is {self.output_stride}; expected 1…{MAX_OUTPUT_STRIDE}")
        if self.input_form == "pixels" and self.input_type != "float32":
            raise CardError(f"the card's input_type is {self.input_type}, and its input is pixels, which are no floats")
        if self.output_layout == "NHW" and self.head != "labels" and self.num_logits > 1:
            raise CardError(
                f"the card's output_layout is NHW, but {self.num_logits} {self.head} a pixel need an axis of "
                "their own; expected NCHW or NHWC"
            )
        if not 1 <= self.stride <= MAX_SIDE_PX:
            raise CardError(f"the card's stride is {self.stride}; expected 1…{MAX_SIDE_PX}")
        if "size" in self.dynamic and any(side % self.stride for side in self.preprocess.size):
            raise CardError(
                f"the card's preprocess.size {self.preprocess.size} is no multiple of its stride {self.stride}"
            )

    @property
    def num_classes(self) -> int:
        """Number of classes that labels tell apart: 2 for a binary network."""
        return len(self.class_names)

    @property
    def num_logits(self) -> int:
        """Number of logits that the network has for each pixel: 1 for a binary network, otherwise one a class."""
        return 1 if self.task == "binary" else self.num_classes

    @property
    def input_axes(self) -> InputLayout:
        """Order of the axes of what the graph takes: N pictures, C channels, H rows, W columns."""
        return self.input_layout or ("NHWC" if self.input_form == "pixels" else "NCHW")

    @property
    def output_axes(self) -> OutputLayout:
        """Order of the axes of what the graph returns; C are the logits or probabilities of a pixel, or one label."""
        return self.output_layout or ("NHW" if self.head == "labels" else "NCHW")

    @property
    def input_dtype(self) -> str:
        """Type of what the graph takes, as numpy calls it."""
        return self.preprocess.depth if self.input_form == "pixels" else self.input_type

    @property
    def input_shape(self) -> Shape:
        """Shape of what the graph takes, in the order of ``input_axes``."""
        return self._input_shape(*self._open_sides)

    @property
    def output_shape(self) -> Shape:
        """Shape of what the graph returns, in the order of ``output_axes``."""
        return self._output_shape(*self._open_sides)

    def shapes_of(self, count: int, size: tuple[int, int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the shapes of what the graph takes and returns, where what it leaves open has these values.

        Args:
            count: of pictures.
            size: (height, width) of them.
        """
        batch, height, width = self._open_sides
        sides = (batch or count, height or size[0], width or size[1])
        return self._input_shape(*sides), self._output_shape(*sides)

    def _input_shape(self, batch: Side, height: Side, width: Side) -> tuple[Side, ...]:
        sides = {"N": batch, "C": self.preprocess.channels, "H": height, "W": width}
        return tuple(sides[axis] for axis in self.input_axes)

    def _output_shape(self, batch: Side, height: Side, width: Side) -> tuple[Side, ...]:
        height, width = (None if side is None else -(-side // self.output_stride) for side in (height, width))
        sides = {"N": batch, "C": 1 if self.head == "labels" else self.num_logits, "H": height, "W": width}
        return tuple(sides[axis] for axis in self.output_axes)

    @property
    def _open_sides(self) -> tuple[int | None, int | None, int | None]:
        batch = None if "batch" in self.dynamic else 1
        height, width = self.frame or self.preprocess.size
        return (batch, None, None) if "size" in self.dynamic else (batch, height, width)

    @property
    def logit_threshold(self) -> float:
        """Logit of a binary network above which the second class wins: the one whose sigmoid is ``threshold``."""
        return math.log(self.threshold / (1 - self.threshold))

    def at_size(self, size: tuple[int, int]) -> "ModelCard":
        """Return the card of the same model, for a graph that leaves its size open, at another size (height, width).

        Raises:
            CardError: if the graph does not leave it open, or ``size`` is no multiple of the stride.
        """
        if size == self.preprocess.size:
            return self
        if "size" not in self.dynamic:
            height, width = self.preprocess.size
            raise CardError(
                f"the size {size[0]}×{size[1]} was asked for, but this model's is fixed at {height}×{width}; "
                "export it with --dynamic size"
            )
        good = tuple(math.ceil(side / self.stride) * self.stride for side in size)
        if good != size:
            raise CardError(
                f"the size {size[0]}×{size[1]} was asked for, but sides must be multiples of {self.stride}; "
                f"the next good size is {good[0]}×{good[1]}"
            )
        return dataclasses.replace(self, preprocess=dataclasses.replace(self.preprocess, size=size))

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
            card = parse(cls, value, "card", CardError)
        except CardError as error:
            raise CardError(f"{origin}: {error}") from None
        return dataclasses.replace(card, format_version=FORMAT_VERSION)
