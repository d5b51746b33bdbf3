"""From a picture to its labels, in one call or as an overlapping stream."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from segship.runtime.backends import EngineInfo, default_backend, load_backend
from segship.runtime.card import ModelCard
from segship.runtime.errors import BackendError, CardError, ModelError, SegshipError
from segship.runtime.images import Conversion, ImageSource, read_image, source_name
from segship.runtime.labels import (
    Labels,
    labels_dtype,
    labels_from_logits,
    probabilities_from_logits,
    resize_labels,
)
from segship.runtime.model_file import has_card, read_card
from segship.runtime.outputs import OutputKind, output_paths
from segship.runtime.pipeline import overlapped
from segship.runtime.preprocess import Image
from segship.runtime.render import DEFAULT_ALPHA, RgbImage, color_image, overlay_image, write_mask, write_rgb
from segship.runtime.tiling import PreparedPicture, prepare

Extra = TypeVar("Extra")


@dataclass(frozen=True)
class Result:
    """What a network says about one picture.

    Attributes:
        source: where the picture came from: its path, or what kind of object it was.
        image: the picture, upright, (H, W, 1 or 3), uint8 or uint16, red, green, blue.
        labels: class ids (H, W) at the picture's own size, uint8 (uint16 above 256 classes).
        logits: (K, h, w) float32 of the network's size, or of the picture's own where it was cut into tiles; K is 1
            for a binary network. None where the graph returns labels.
        card: of the model.
        timings: milliseconds by stage: ``prepare_ms``, ``network_ms``, ``labels_ms``.
    """

    source: str
    image: Image
    labels: Labels
    logits: NDArray[np.float32] | None
    card: ModelCard
    timings: dict[str, float] = field(default_factory=dict)

    @cached_property
    def areas(self) -> dict[str, float]:
        """Share of the picture that each class has, 0…1, by name."""
        counts = np.bincount(self.labels.ravel(), minlength=self.card.num_classes)
        return {name: float(counts[i]) / self.labels.size for i, name in enumerate(self.card.class_names)}

    @cached_property
    def probabilities(self) -> NDArray[np.float32]:
        """Softmax over the classes at the picture's size, (C, H, W), 0…1.

        Raises:
            ModelError: if the graph returns labels, from which no probabilities can be told.
        """
        if self.logits is None:
            raise ModelError("this model returns labels, so there are no probabilities; export it with --head logits")
        return probabilities_from_logits(self.logits, (self.labels.shape[0], self.labels.shape[1]), self.card)

    def color(self) -> RgbImage:
        """Return the labels in the card's colours, (H, W, 3) uint8 RGB."""
        return color_image(self.labels, self.card)

    def overlay(self, alpha: float = DEFAULT_ALPHA) -> RgbImage:
        """Return the picture under the labels' colours of opacity ``alpha`` (0…1), (H, W, 3) uint8 RGB."""
        return overlay_image(self.image, self.labels, self.card, alpha)

    def save(
        self,
        out: str | Path,
        kinds: Sequence[OutputKind] = ("mask", "overlay"),
        *,
        name: str | Path | None = None,
        alpha: float = DEFAULT_ALPHA,
    ) -> dict[OutputKind, Path]:
        """Write pictures of the result as ``out/KIND/name.png``, each whole or not at all, over what is there.

        Args:
            out: folder to write below.
            kinds: ``mask`` (palette PNG of class ids), ``color``, ``overlay``.
            name: without suffix, may lead into folders; None: that of the source.
            alpha: opacity of the colours in the overlay, 0…1.

        Returns:
            Where each kind was written.
        """
        paths = output_paths(Path(out), kinds, Path(self.source).stem if name is None else name)
        for kind, path in paths.items():
            match kind:
                case "mask":
                    write_mask(path, self.labels, self.card)
                case "color":
                    write_rgb(path, self.color())
                case "overlay":
                    write_rgb(path, self.overlay(alpha))
        return paths


@dataclass(frozen=True)
class _Prepared:
    source: str
    image: Image
    through: PreparedPicture
    timings: dict[str, float]


class Segmenter:
    """A model with an engine that runs it.

    Args:
        model: an ``.onnx`` file, or a checkpoint for the backend ``torch``.
        backend: name of the engine; None: ``ort`` where it is installed, otherwise ``opencv``. ``info`` says which.
        device: ``auto``, ``cpu`` or ``cuda[:N]``; what is asked for runs, or it is an error.
        card: for a model that carries none; one that has its own is not overruled.
        convert: lossy conversions of pictures that are allowed.

    Raises:
        ModelError: if the model is missing or damaged, or the engine cannot run it.
        CardError: if neither the model nor ``card`` says what must be known.
        BackendError: if there is no such engine or device.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        backend: str | None = None,
        device: str = "auto",
        card: ModelCard | None = None,
        convert: Collection[Conversion] = (),
    ) -> None:
        self.model = Path(model)
        self.card = read_card(self.model) if card is None else _only_card(self.model, card)
        self.convert = frozenset(convert)
        self._backend = load_backend(backend or default_backend(), self.model, self.card, device)

    @property
    def info(self) -> EngineInfo:
        """What really runs the network."""
        return self._backend.info

    def __call__(self, image: ImageSource) -> Result:
        """Segment one picture.

        Args:
            image: a path, a Pillow image, or an array (H, W, 3) or (H, W), uint8 or uint16, red, green, blue.

        Raises:
            ImageError: if it cannot be read, or only with a lossy conversion that was not allowed.
            BackendError: if the engine fails or returns what the card does not promise.
        """
        return self._finish(*self._infer(self._prepare(image)))

    @overload
    def stream(
        self, images: Iterable[ImageSource], *, on_error: Callable[[int, SegshipError], None] | None = None
    ) -> Iterator[Result]: ...

    @overload
    def stream(
        self,
        images: Iterable[ImageSource],
        *,
        then: Callable[[int, Result], Extra],
        on_error: Callable[[int, SegshipError], None] | None = None,
    ) -> Iterator[tuple[Result, Extra]]: ...

    def stream(
        self,
        images: Iterable[ImageSource],
        *,
        then: Callable[[int, Result], Extra] | None = None,
        on_error: Callable[[int, SegshipError], None] | None = None,
    ) -> Iterator[Result] | Iterator[tuple[Result, Extra]]:
        """Segment many pictures; reading, network and what follows overlap, order is kept, memory stays bounded.

        Args:
            images: read no faster than results are taken. Arrays are not copied: do not write into one before its
                result is there.
            then: called in a worker thread with each picture's number, from 0, and its result; writes files, say.
            on_error: called with the number of a picture that failed and its error, and the stream goes on. Without it
                the error is raised and the stream ends.

        Yields:
            Results; with ``then``, each with what that returned.
        """

        def finish(numbered: tuple[int, tuple[_Prepared, NDArray[Any]]]) -> Any:
            number, inferred = numbered
            result = self._finish(*inferred)
            return result if then is None else (result, then(number, result))

        stages = overlapped(
            enumerate(images),
            before=lambda item: (item[0], self._prepare(item[1])),
            network=lambda ready: (ready[0], self._infer(ready[1])),
            after=finish,
        )
        with contextlib.closing(stages):  # an error leaves no thread behind that still runs the network
            for (number, _), done in stages:
                error = done.exception()
                if isinstance(error, SegshipError) and on_error is not None:
                    on_error(number, error)
                else:
                    yield done.result()

    def describe(self) -> dict[str, Any]:
        """Return model, classes and what really runs, as plain values."""
        return {
            "model": str(self.model),
            "network": self.card.network.arch if self.card.network else None,
            "size": list(self.card.preprocess.size),
            "tile_overlap": self.card.tile_overlap,
            "task": self.card.task,
            "head": self.card.head,
            "classes": list(self.card.class_names),
            "engine": dataclasses.asdict(self.info),
        }

    def close(self) -> None:
        """Free what the engine holds."""
        self._backend.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _prepare(self, source: ImageSource) -> _Prepared:
        start = time.perf_counter()
        form = self.card.preprocess
        image = read_image(source, channels=form.channels, depth=form.depth, convert=self.convert)
        through = prepare(self.card, image)
        return _Prepared(source_name(source), image, through, {"prepare_ms": _ms_since(start)})

    def _infer(self, prepared: _Prepared) -> tuple[_Prepared, NDArray[Any]]:
        start = time.perf_counter()
        output = prepared.through(self._run)
        prepared.timings["network_ms"] = _ms_since(start)
        return prepared, output

    def _finish(self, prepared: _Prepared, output: NDArray[Any]) -> Result:
        start = time.perf_counter()
        size = (prepared.image.shape[0], prepared.image.shape[1])
        if self.card.head == "logits":
            logits, labels = output, labels_from_logits(output, size, self.card)
        else:
            logits, labels = None, resize_labels(output, size)
        prepared.timings["labels_ms"] = _ms_since(start)
        return Result(prepared.source, prepared.image, labels, logits, self.card, prepared.timings)

    def _run(self, batch: NDArray[np.float32]) -> NDArray[Any]:
        """Map the network's input (1, C, h, w) to its logits (K, h, w) or labels (h, w), checked."""
        output = self._backend.run(batch)
        output = self._check_logits(output) if self.card.head == "logits" else self._check_labels(output)
        return np.asarray(output[0])

    def _check_logits(self, output: NDArray[Any]) -> NDArray[np.float32]:
        expected = (1, self.card.num_logits, *self.card.preprocess.size)
        if output.shape != expected or output.dtype != np.float32:
            raise BackendError(f"the graph returned {_described(output)}; its card promises logits {expected} float32")
        limit = np.finfo(np.float32).max  # which OpenCV 5 makes of NaN
        if not (-limit < output.min() and output.max() < limit):
            raise BackendError("the network returned values that are no numbers (NaN or infinite); its weights are bad")
        return output

    def _check_labels(self, output: NDArray[Any]) -> Labels:
        expected = (1, *self.card.preprocess.size)
        labels = output.astype(labels_dtype(self.card.num_classes))  # OpenCV 4 returns them as float32
        if output.shape != expected or (labels != output).any() or labels.max() >= self.card.num_classes:
            raise BackendError(
                f"the graph returned {_described(output)}; its card promises labels {expected} "
                f"of 0…{self.card.num_classes - 1}"
            )
        return labels


def _only_card(model: Path, card: ModelCard) -> ModelCard:
    if has_card(model):
        raise CardError(f"{model} carries its own card, which says how it was trained; leave out --card")
    return card


def _described(output: NDArray[Any]) -> str:
    return f"{output.shape} {output.dtype}, {output.min()}…{output.max()}"


def _ms_since(start: float) -> float:
    return (time.perf_counter() - start) * 1000
