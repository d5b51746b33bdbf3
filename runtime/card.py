"""The model card: everything a deployment must know, as one JSON text that travels inside the model file.

The text lies under the key ``segship`` in the ``metadata_props`` of an ONNX file and in the metadata of a
``.safetensors`` checkpoint. It is parsed strictly: unknown or missing keys, wrong types and sizes out of bounds are
errors, and nothing in it is ever evaluated.
"""

import dataclasses
import json
import math
from dataclasses import dataclass, field
from typing import Final, Literal

from segship.runtime.errors import CardError
from segship.runtime.palettes import Color
from segship.runtime.preprocess import Preprocess
from segship.runtime.strict import parse

CARD_KEY: Final = "segship"
FORMAT_VERSION: Final = 2
MAX_CARD_BYTES: Final = 4 << 20
MAX_CLASSES: Final = 65535
MAX_TILE_OVERLAP: Final = 0.9

Head = Literal["logits", "labels"]
Task = Literal["multiclass", "binary"]


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
        head: what the graph returns: ``logits`` (1, K, H, W) float32, K the number of logits, or ``labels`` (1, H, W)
            class ids, uint8 up to 256 classes and uint16 above.
        ignore_index: the id that means "no class" in training masks; a network never returns it.
        network: which network it is; None for a model that segship did not train.
        input_name: name of the graph's input, (1, C, H, W) float32.
        output_name: name of the graph's output.
        provenance: where the model comes from.
        format_version: the one that this segship writes; cards of older ones are read as cards of this one.
    """

    class_names: tuple[str, ...]
    palette: tuple[Color, ...]
    preprocess: Preprocess
    task: Task = "multiclass"
    threshold: float = 0.5
    tile_overlap: float | None = None
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
        if self.task == "binary" and len(self.class_names) != 2:
            raise CardError(f"the card's task is binary, and it has {len(self.class_names)} class names; expected 2")
        if not 0 < self.threshold < 1:
            raise CardError(f"the card's threshold is {self.threshold}; expected a number between 0 and 1")
        if self.tile_overlap is not None and not 0 <= self.tile_overlap <= MAX_TILE_OVERLAP:
            raise CardError(f"the card's tile_overlap is {self.tile_overlap}; expected 0…{MAX_TILE_OVERLAP}")
        if self.tile_overlap is not None and self.head == "labels":
            raise CardError(
                f"the card's tile_overlap is {self.tile_overlap} and its head labels, but tiles can only be blended by "
                "their logits; export with --head logits"
            )
        if 0 <= self.ignore_index < len(self.class_names):
            raise CardError(
                f"the card's ignore_index {self.ignore_index} is a class: {self.class_names[self.ignore_index]!r}"
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
    def logit_threshold(self) -> float:
        """Logit of a binary network above which the second class wins: the one whose sigmoid is ``threshold``."""
        return math.log(self.threshold / (1 - self.threshold))

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
