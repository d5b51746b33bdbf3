"""What is done to each picture, stage by stage: read, prepare, infer, labels."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from segship.runtime.backends import Backend
from segship.runtime.card import ModelCard
from segship.runtime.errors import CardError, ImageError
from segship.runtime.images import Conversion, ImageSource, read_image, source_name
from segship.runtime.labels import Labels, labels_by_nearest, labels_from_logits, resize_labels
from segship.runtime.network import run_checked
from segship.runtime.postprocess import PostProcess, keep_only
from segship.runtime.prepare import TiledPicture, Tiling, WholePicture, logits_of_tiles, whole_picture
from segship.runtime.preprocess import Image

Upscale = Literal["logits", "labels"]


@dataclass(frozen=True)
class Stages:
    """A picture on its way to the network.

    Attributes:
        decoded: (H, W, C), upright, of the card's depth and channels.
        resized: (h, w, C); None where the graph resizes, or the picture is cut into tiles.
        normalised: (1, C, h, w) float32; None where the graph normalises, or the picture is cut into tiles.
    """

    decoded: Image
    resized: Image | None
    normalised: NDArray[np.float32] | None


@dataclass(frozen=True)
class Processing:
    """The stages of a picture, each a call of its own; a :class:`~segship.runtime.segmenter.Segmenter` does them all.

    Attributes:
        backend: that has loaded the model.
        card: of the model, at the size that whole pictures are brought to.
        tile_card: likewise, at the size that tiles are brought to.
        tiling: how pictures are cut into tiles; None: they are not.
        upscale: what is brought to the picture's size.
        convert: lossy conversions of pictures that are allowed.
        max_pixels: of a picture; larger ones are refused, before they are decoded.
        post: what is done to labels.
        only: classes that are told of, the rest becomes the card's ignore index; None: all.

    Raises:
        CardError: if labels of tiles are to be brought to a size: tiles are blended by their logits.
    """

    backend: Backend
    card: ModelCard
    tile_card: ModelCard
    tiling: Tiling | None
    upscale: Upscale
    convert: frozenset[Conversion]
    max_pixels: int
    post: PostProcess
    only: frozenset[int] | None

    def __post_init__(self) -> None:
        if self.tiling is not None and self.upscale == "labels":
            raise CardError("logits of tiles lie at the picture's size already; leave out --upscale labels")

    def read(self, source: ImageSource | ImageError, name: str | None = None) -> Image:
        """Do the first stage: read a picture in the card's form, (H, W, C); messages call it ``name``.

        Raises:
            ImageError: if it cannot be read, or only with a lossy conversion that was not allowed.
        """
        form, frame = self.card.preprocess, self.card.frame
        image = read_image(
            source,
            channels=form.channels,
            depth=form.depth,
            convert=self.convert,
            max_pixels=self.max_pixels,
            name=name,
        )
        if frame is not None and image.shape[:2] != frame:
            raise ImageError(
                f"{name or source_name(source)}: its {image.shape[0]}×{image.shape[1]} pixels do not fit a model of "
                f"{frame[0]}×{frame[1]} frames (height × width); export one without --frame for pictures of any size"
            )
        return image

    def prepare(self, image: Image) -> WholePicture | TiledPicture:
        """Do the second stage: bring a picture (H, W, C) into the form that the graph takes."""
        tiling = self.tiling
        if tiling is None:
            return whole_picture(self.card, image)
        is_covered = image.shape[0] <= tiling.size[0] and image.shape[1] <= tiling.size[1]
        if is_covered and self.card.tile_overlap is None:
            return whole_picture(self.card, image)
        return TiledPicture(image, self.tile_card, tiling)

    def infer(self, prepared: Sequence[WholePicture | TiledPicture]) -> list[NDArray[Any]]:
        """Do the third stage: return what the network says of each picture, (K, h, w) or (h, w), checked.

        Whole pictures go through it in one run together.

        Raises:
            BackendError: if the engine fails or returns what the card does not promise.
        """
        whole = [picture for picture in prepared if isinstance(picture, WholePicture)]
        if len(whole) == len(prepared) > 1:
            together = run_checked(self.backend, self.card, np.concatenate([picture.batch for picture in whole]))
            return [picture.of_output(output) for picture, output in zip(whole, together, strict=True)]
        return [self._infer_alone(picture) for picture in prepared]

    def infer_tiles(self, tiles: Sequence[Image]) -> NDArray[np.float32]:
        """Do that stage for N tiles (h, w, C) of a picture in the card's form; return their logits (N, K, h, w).

        Raises:
            BackendError: if the engine fails or returns what the card does not promise.
        """
        return logits_of_tiles(self.tile_card, tiles, lambda batch: run_checked(self.backend, self.tile_card, batch))

    def labels(self, output: NDArray[Any], size: tuple[int, int]) -> Labels:
        """Do the last stage: what the network says of a picture to labels of its ``size`` (height, width)."""
        card = self.card
        if card.head == "labels":
            labels = resize_labels(output, size)
        elif self.upscale == "labels":
            labels = labels_by_nearest(output, size, card)
        else:
            labels = labels_from_logits(output, size, card)
        if self.post:
            labels = self.post.apply(labels, card)
        return self.told_of(labels)

    def told_of(self, labels: Labels) -> Labels:
        """Return labels with the classes that are told of."""
        return labels if self.only is None else keep_only(labels, self.only, self.card)

    def stages(self, image: ImageSource) -> Stages:
        """Return what a picture is on its way to the network.

        Raises:
            ImageError: if it cannot be read.
        """
        form = self.card.preprocess
        decoded = self.read(image)
        if self.tiling is not None or self.card.frame is not None:
            return Stages(decoded, None, None)
        resized = form.geometry(decoded)
        return Stages(decoded, resized, form.normalise(resized) if self.card.input_form == "float" else None)

    def warmup(self, batch: int) -> None:
        """Run the network on ``batch`` blank pictures or tiles.

        Raises:
            BackendError: if the engine fails.
        """
        card = self.tile_card if self.tiling else self.card
        form = card.preprocess
        blank = np.zeros((*(card.frame or form.size), form.channels), form.depth)
        run_checked(self.backend, card, np.repeat(whole_picture(card, blank).batch, batch, axis=0))

    def _infer_alone(self, picture: WholePicture | TiledPicture) -> NDArray[Any]:
        return picture(lambda batch: run_checked(self.backend, picture.card, batch))
