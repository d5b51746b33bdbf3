"""Files of results: which kinds there are, where they go (``out/KIND/…/name.SUFFIX``), and writing them."""

import collections
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, assert_never, get_args

from segship.runtime.card import ModelCard
from segship.runtime.class_choice import foreground_ids
from segship.runtime.errors import OutputError
from segship.runtime.files import write_text
from segship.runtime.printable import printable
from segship.runtime.render import (
    DEFAULT_ALPHA,
    RgbImage,
    color_image,
    cutout_image,
    overlay_image,
    side_by_side_image,
    write_mask,
    write_pixels,
)

if TYPE_CHECKING:
    from segship.runtime.result import Result

OutputKind = Literal["mask", "color", "overlay", "side-by-side", "cutout", "probability", "contours"]
"""What is written of a result.

- ``mask``: PNG of class ids, with the card's palette; 16-bit grey above 256 classes.
- ``color``: PNG of the classes' colours, black where there is no class.
- ``overlay``: PNG of the picture under the colours.
- ``side-by-side``: PNG of the picture, and the colours to its right.
- ``cutout``: PNG of the picture with the foreground's probability as its alpha channel.
- ``probability``: 16-bit grey PNG of the class that won, or of a binary network's object; or npz of all classes.
- ``contours``: GeoJSON polygons, or COCO's run lengths, of each connected region.
"""
OUTPUT_KINDS: Final[tuple[OutputKind, ...]] = get_args(OutputKind)

_MAX_NAME: Final = 255
"""Bytes of a file's or a folder's name that the usual file systems take."""
_MAX_PATH: Final = 4095

_SUFFIXES: Final = {"npz": ".npz", "png": ".png", "geojson": ".geojson", "coco": ".json"}


@dataclass(frozen=True)
class OutputOptions:
    """How results are drawn and written.

    Attributes:
        alpha: opacity of the colours in overlays, 0…1.
        legend: draw a legend below color, overlay and side-by-side, which makes these pictures higher.
        legend_ids: classes to list in it, in this order; None: those in the picture, by area.
        probabilities: ``png`` or ``npz``.
        contours: ``geojson`` or ``coco``.
        foreground: classes that a cutout keeps; None: all but the background.
    """

    alpha: float = DEFAULT_ALPHA
    legend: bool = False
    legend_ids: tuple[int, ...] | None = None
    probabilities: Literal["png", "npz"] = "png"
    contours: Literal["geojson", "coco"] = "geojson"
    foreground: frozenset[int] | None = None

    def __post_init__(self) -> None:
        """Refuse an opacity that is none.

        Raises:
            ValueError: naming the field.
        """
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha is {self.alpha}; expected 0…1")


DEFAULT_OPTIONS: Final = OutputOptions()


def output_paths(
    out: Path, kinds: Sequence[OutputKind], name: str | Path, options: OutputOptions = DEFAULT_OPTIONS
) -> dict[OutputKind, Path]:
    """Return the file of each kind of output for the picture called ``name`` (without suffix)."""
    formats = {"probability": options.probabilities, "contours": options.contours}
    return {kind: out / kind / f"{name}{_SUFFIXES[formats.get(kind, 'png')]}" for kind in kinds}


def write_outputs(result: "Result", paths: Mapping[OutputKind, Path], options: OutputOptions = DEFAULT_OPTIONS) -> None:
    """Write files of a result, each whole or not at all, over what is there.

    Args:
        result: of one picture.
        paths: where each kind goes, as :func:`output_paths` says.
        options: how they are drawn and written.

    Raises:
        OutputError: if a place cannot be written; or if a cutout is asked for and nothing says what is foreground.
        ModelError: if the graph returns labels and probabilities are asked for.
    """
    for kind, path in paths.items():
        _write(kind, path, result, options)


def overlay_picture(result: "Result", options: OutputOptions = DEFAULT_OPTIONS) -> RgbImage:
    """Draw the overlay of a result, with its legend where one is asked for, (H, W, 3) uint8 RGB."""
    overlay = overlay_image(result.image, result.labels, result.card, options.alpha)
    return _with_legend(overlay, result, options)


def check_outputs(kinds: Sequence[OutputKind], card: ModelCard, options: OutputOptions = DEFAULT_OPTIONS) -> None:
    """Check that a model's results have these kinds of output at all, before the first picture is read.

    Raises:
        OutputError: if not, saying why.
    """
    if "cutout" in kinds and options.foreground is None:
        foreground_ids(card)
    if "probability" in kinds and card.head == "labels":
        raise OutputError(
            "this model returns labels, so there are no probabilities to save; export it with --head logits"
        )


def output_names(places: Sequence[Path]) -> list[Path]:
    """Name each picture's outputs by its place.

    Pictures that differ in their suffix only keep it (``name.jpg``, ``name.png``), so that none writes over another.
    """
    stems = [place.with_suffix("") for place in places]
    taken = collections.Counter(str(path).casefold() for path in [*stems, *places])
    return [stem if taken[str(stem).casefold()] == 1 else place for stem, place in zip(stems, places, strict=True)]


def too_long(paths: Iterable[Path]) -> str:
    """Say what is wrong with a path that no file system takes for its length; nothing if all are short enough."""
    for path in paths:
        if (longest := max(len(os.fsencode(part)) for part in path.parts)) > _MAX_NAME:
            return f"its output's name is too long ({longest} bytes, and a name may have {_MAX_NAME}); rename it"
        if (length := len(os.fsencode(path))) > _MAX_PATH:
            return f"its output's path is too long ({length} bytes, and a path may have {_MAX_PATH}); shorten it"
    return ""


def check_free(
    out: Path, kinds: Sequence[OutputKind], names: Sequence[Path], options: OutputOptions = DEFAULT_OPTIONS
) -> None:
    """Check that no output is there already.

    Raises:
        OutputError: naming one that is, and how many are.
    """
    paths = [path for name in names for path in output_paths(out, kinds, name, options).values()]
    if existing := [path for path in paths if os.path.exists(path)]:  # noqa: PTH110  # False where it is too long
        raise OutputError(
            f"{printable(existing[0])} is there already ({len(existing)} of {len(paths)} outputs are); "
            "add --overwrite, or choose another --out"
        )


def write_classes(folder: Path, card: ModelCard, *, overwrite: bool) -> None:
    """Write ``classes.json`` (id, name, colour) beside the masks in ``folder``.

    Raises:
        OutputError: if one with other classes is there already and ``overwrite`` is False.
    """
    rows = zip(card.class_names, card.palette, strict=True)
    classes = [{"id": i, "name": name, "color": list(color)} for i, (name, color) in enumerate(rows)]
    listed = ",\n  ".join(json.dumps(row, ensure_ascii=False) for row in classes)
    text = f"[\n  {listed}\n]\n"
    path = folder / "classes.json"
    if not overwrite and path.exists() and path.read_bytes() != text.encode():
        raise OutputError(f"{path} names other classes than this model has; add --overwrite, or choose another --out")
    write_text(path, text)


def _write(kind: OutputKind, path: Path, result: "Result", options: OutputOptions) -> None:
    image, labels, card = result.image, result.labels, result.card
    match kind:
        case "mask":
            write_mask(path, labels, card)
        case "color":
            write_pixels(path, _with_legend(color_image(labels, card), result, options))
        case "overlay":
            write_pixels(path, overlay_picture(result, options))
        case "side-by-side":
            write_pixels(path, _with_legend(side_by_side_image(image, labels, card), result, options))
        case "cutout":
            from segship.runtime.probability import foreground_opacity

            foreground = foreground_ids(card) if options.foreground is None else options.foreground
            write_pixels(path, cutout_image(image, foreground_opacity(result, foreground)))
        case "probability":
            from segship.runtime.probability import probability_image, write_probabilities

            if options.probabilities == "npz":
                write_probabilities(path, result)
            else:
                write_pixels(path, probability_image(result))
        case "contours":
            from segship.runtime.contours import write_contours

            write_contours(path, result, as_coco=options.contours == "coco")
        case _:
            assert_never(kind)


def _with_legend(picture: RgbImage, result: "Result", options: OutputOptions) -> RgbImage:
    if not options.legend:
        return picture
    from segship.runtime.legend import ids_by_area, with_legend

    ids = ids_by_area(result.labels, result.card) if options.legend_ids is None else options.legend_ids
    return with_legend(picture, result.card, ids)
