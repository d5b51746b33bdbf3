"""From a picture to its labels, in one call or as an overlapping stream."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar, overload

from numpy.typing import NDArray

from segship.runtime.backends import Backend, EngineInfo, default_backend, load_backend
from segship.runtime.backends.isolated import isolated
from segship.runtime.backends.options import EngineOptions
from segship.runtime.card import ModelCard
from segship.runtime.class_choice import class_ids
from segship.runtime.errors import CardError, ImageError, ModelError, SegshipError
from segship.runtime.images import MAX_PIXELS, Conversion, ImageSource, source_name
from segship.runtime.palette_text import parse_palette
from segship.runtime.pipeline import overlapped
from segship.runtime.postprocess import PostProcess
from segship.runtime.prepare import TiledPicture, WholePicture
from segship.runtime.preprocess import Image
from segship.runtime.processing import Processing, Upscale
from segship.runtime.proof import warn_if_unproven
from segship.runtime.result import Result
from segship.runtime.segmenter_plan import card_of, only_card, plan_batch, plan_crew, plan_tiles
from segship.runtime.source_item import SourceItem

Extra = TypeVar("Extra")
Tagged = ImageSource | tuple[ImageSource, Any] | SourceItem
"""A picture, a picture with a tag that comes back with its result, or an item of a source, which is its own tag."""


@dataclass(frozen=True)
class _Prepared:
    source: str
    tag: Any
    image: Image
    through: WholePicture | TiledPicture
    timings: dict[str, float]


class Segmenter:
    """A model with an engine that runs it; one may serve several threads, and go to other processes by pickle.

    Args:
        model: an ``.onnx`` file, or a checkpoint for the backend ``torch``.
        backend: name of the engine; None: ``ort`` where it is installed, otherwise ``opencv``. ``info`` says which.
            An engine that has loaded the model already is taken as it is, with the ``card`` that it was loaded with.
        device: ``auto``, ``cpu`` or ``cuda[:N]``; what is asked for runs, or it is an error.
        options: of the engine; None: as by default.
        card: for a model that carries none; one that has its own is not overruled.
        size: (height, width) that pictures are brought to, for a graph that leaves its size open; None: the card's.
        tile: (height, width) of the tiles that pictures larger than one are cut into. Each is brought to the network's
            size as a picture is: to ``size`` or the card's or, where the graph leaves it open, to the tile's own. None:
            as the card says.
        overlap: share of a tile that the next one covers too, 0…0.9; None: the card's, or a quarter.
        batch: pictures, or tiles, that the graph gets at once where it leaves their number open; None: 8 on a GPU,
            otherwise 1, since a CPU gains nothing by more.
        upscale: what is brought to the picture's size: ``logits`` (smooth edges) or ``labels`` (faster; the only way
            where the graph returns labels).
        convert: lossy conversions of pictures that are allowed.
        max_pixels: of a picture; larger ones are refused, before they are decoded.
        post: what is done to labels; None: nothing.
        only: names or ids of the classes that are told of; the rest becomes the card's ignore index. None: all.
        palette: other colours than the card's: a palette's name, a file, or ``1=0,0,255;car=#ff0000``
            (:func:`~segship.runtime.palette_text.parse_palette`).
        isolate: run the engine in a process of its own, so that a crash of it is an error and not the end.

    Attributes:
        model: as given.
        options: likewise.
        processing: the stages of a picture, for those who want each on its own.
        crew: who does the work of a stream.

    Raises:
        ModelError: if the model is missing or damaged, or the engine cannot run it.
        CardError: if neither the model nor ``card`` says what must be known.
        BackendError: if there is no such engine or device, or it does not have an option.

    Warns:
        UnprovenWarning: if the model has a certificate that does not cover it, or the engine that runs it.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        backend: str | Backend | None = None,
        device: str = "auto",
        options: EngineOptions | None = None,
        card: ModelCard | None = None,
        size: tuple[int, int] | None = None,
        tile: tuple[int, int] | None = None,
        overlap: float | None = None,
        batch: int | None = None,
        upscale: Upscale = "logits",
        convert: Collection[Conversion] = (),
        max_pixels: int = MAX_PIXELS,
        post: PostProcess | None = None,
        only: str | Collection[str] | None = None,
        palette: str | None = None,
        isolate: bool = False,
    ) -> None:
        self.model = Path(model)
        self._arguments = {name: value for name, value in dict(locals()).items() if name not in ("self", "model")}
        self.options = options or EngineOptions()
        with contextlib.ExitStack() as opened:  # what does not fit the model leaves no engine behind
            if backend is None or isinstance(backend, str):
                card = card_of(self.model) if card is None else only_card(self.model, card)
                load = isolated if isolate else load_backend
                backend = load(backend or default_backend(), self.model, card, device, self.options)
                opened.callback(backend.close)
                warn_if_unproven(self.model, card, backend.info)
            elif card is None:
                raise CardError("an engine that is loaded already needs the card that it was loaded with")
            card = card if palette is None else parse_palette(palette, card)
            at_once = plan_batch(self.model, card, backend.info, batch)
            card = card if size is None else card.at_size(size)
            self.processing = Processing(
                backend,
                card,
                *plan_tiles(card, size, tile, overlap, at_once),
                upscale="labels" if card.head == "labels" else upscale,
                convert=frozenset(convert),
                max_pixels=max_pixels,
                post=post or PostProcess(),
                only=None if only is None else class_ids(only, card),
            )
            opened.pop_all()
        self.crew = plan_crew(backend.info, at_once)

    @property
    def card(self) -> ModelCard:
        """Of the model, at the size that pictures are brought to."""
        return self.processing.card

    @property
    def info(self) -> EngineInfo:
        """What really runs the network."""
        return self.processing.backend.info

    @property
    def transfer_ns(self) -> int | None:
        """Nanoseconds that copies to and from the GPU took in all runs so far; None: the engine does not tell."""
        transfer_ns: int | None = getattr(self.processing.backend, "transfer_ns", None)
        return transfer_ns

    def __call__(self, image: ImageSource) -> Result:
        """Segment one picture.

        Args:
            image: a path, a Pillow image, the bytes of an encoded picture, or an array (H, W, 3) or (H, W), uint8 or
                uint16, red, green, blue.

        Raises:
            ImageError: if it cannot be read, or only with a lossy conversion that was not allowed.
            BackendError: if the engine fails or returns what the card does not promise.
        """
        prepared = self._prepare(image, None)
        return self._finish(prepared, self._infer([prepared])[0])

    def batch(self, images: Sequence[ImageSource]) -> list[Result]:
        """Segment several pictures in one run of the graph.

        Raises:
            ModelError: if the graph takes one picture at a time.
            ImageError: if one cannot be read.
            BackendError: if the engine fails or returns what the card does not promise.
        """
        if self.processing.tiling is not None:
            raise ModelError(
                "pictures are cut into tiles here, which are run in batches of their own; call it with each"
            )
        if "batch" not in self.card.dynamic:
            raise ModelError(f"{self.model} takes one picture at a time; export it with --dynamic batch")
        prepared = [self._prepare(image, None) for image in images]
        return [self._finish(one, output) for one, output in zip(prepared, self._infer(prepared), strict=True)]

    @overload
    def stream(
        self,
        images: Iterable[Tagged],
        *,
        on_error: Callable[[Any, SegshipError], None] | None = None,
        is_live: bool = False,
    ) -> Iterator[Result]: ...

    @overload
    def stream(
        self,
        images: Iterable[Tagged],
        *,
        then: Callable[[Result], Extra],
        on_error: Callable[[Any, SegshipError], None] | None = None,
        is_live: bool = False,
    ) -> Iterator[Extra]: ...

    def stream(
        self,
        images: Iterable[Tagged],
        *,
        then: Callable[[Result], Extra] | None = None,
        on_error: Callable[[Any, SegshipError], None] | None = None,
        is_live: bool = False,
    ) -> Iterator[Result] | Iterator[Extra]:
        """Segment many pictures; all stages overlap, order is kept, memory stays bounded.

        Args:
            images: pictures, (picture, tag), or what :func:`~segship.runtime.sources.open_sources` yields. Read in a
                thread of their own, no faster than results are taken.
                Arrays are not copied: do not write into one before its result is there.
            then: called in a worker thread with each result; writes files, say. What it does not return of the
                result goes, and with it most of the memory that results take.
            on_error: called with the tag of a picture that failed (or its number, from 0) and its error, and the
                stream goes on. Without it the error is raised and the stream ends.
            is_live: the pictures grow old while they wait, as those of a camera: the next one is taken only when the
                one before has reached the network.

        Yields:
            Results, each with its tag; with ``then``, what that returned of each.
        """

        def finish(inferred: tuple[_Prepared, NDArray[Any]]) -> Any:
            result = self._finish(*inferred)
            if then is None:
                return result
            start = time.perf_counter()
            extra = then(result)
            result.timings["outputs_ms"] = _ms_since(start)
            return extra

        stages = overlapped(
            _tagged(images),
            before=lambda read: self._prepare(*read),
            network=lambda ready: list(zip(ready, self._infer(ready), strict=True)),
            after=finish,
            crew=dataclasses.replace(self.crew, reads_ahead=not is_live),
            interrupt=self._interrupt,
        )
        with contextlib.closing(stages):  # an error leaves no thread behind that still runs the network
            for outcome in stages:
                if isinstance(outcome.error, SegshipError) and outcome.item is not None and on_error is not None:
                    on_error(outcome.item[1], outcome.error)
                    continue
                yield outcome.result()

    def warmup(self, runs: int = 1) -> None:
        """Run the network on blank input, so that what engines put off until then does not delay the first picture.

        Raises:
            BackendError: if the engine fails.
        """
        for _ in range(runs):
            self.processing.warmup(self.crew.batch)

    def at_size(self, size: tuple[int, int]) -> "Segmenter":
        """Return the same engine with pictures brought to another size; it is closed by closing either.

        Raises:
            CardError: if the graph does not leave its size open, or not to this one.
        """
        other = {"backend": self.processing.backend, "card": self.card, "size": size}
        return Segmenter(self.model, **(self._arguments | other))

    def describe(self) -> dict[str, Any]:
        """Return model, classes and what really runs, as plain values."""
        tiling = self.processing.tiling
        return {
            "model": str(self.model),
            "network": self.card.network.arch if self.card.network else None,
            "size": list(self.card.preprocess.size),
            "resize": self.card.preprocess.resize,
            "tile": None if tiling is None else list(tiling.size),
            "tile_overlap": None if tiling is None else tiling.overlap,
            "task": self.card.task,
            "head": self.card.head,
            "upscale": self.processing.upscale,
            "input": self.card.input_form,
            "frame": None if self.card.frame is None else list(self.card.frame),
            "dynamic": list(self.card.dynamic),
            "batch": self.crew.batch,
            "precision": self.card.precision,
            "classes": list(self.card.class_names),
            "engine": dataclasses.asdict(self.info),
        }

    def close(self) -> None:
        """Free what the engine holds."""
        self.processing.backend.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if isinstance(error, KeyboardInterrupt | SystemExit):
            self._interrupt()
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as what it was made of: another process loads the model anew."""
        if not isinstance(self._arguments["backend"], str | None):
            raise ModelError("a segmenter that was given a loaded engine cannot be pickled; give the engine's name")
        return _remade, (self.model, self._arguments)

    def _interrupt(self) -> None:
        """End what the engine is doing, if it can be ended: closing it would wait."""
        interrupt: Callable[[], None] | None = getattr(self.processing.backend, "interrupt", None)
        if interrupt is not None:
            interrupt()

    def _prepare(self, source: ImageSource | ImageError, tag: Any, read_ms: float | None = None) -> _Prepared:
        start = time.perf_counter()
        name = tag.name if isinstance(tag, SourceItem) else source_name(source)
        image = self.processing.read(source, name)
        decoded = time.perf_counter()
        through = self.processing.prepare(image)
        timings = {} if read_ms is None else {"read_ms": read_ms}
        timings |= {"decode_ms": (decoded - start) * 1000, "prepare_ms": _ms_since(decoded)}
        return _Prepared(name, tag, image, through, timings)

    def _infer(self, prepared: Sequence[_Prepared]) -> list[NDArray[Any]]:
        start = time.perf_counter()
        outputs = self.processing.infer([one.through for one in prepared])
        for one in prepared:
            one.timings["network_ms"] = _ms_since(start) / len(prepared)
        return outputs

    def _finish(self, prepared: _Prepared, output: NDArray[Any]) -> Result:
        start = time.perf_counter()
        image, card = prepared.image, self.card
        labels = self.processing.labels(output, (image.shape[0], image.shape[1]))
        logits = None if card.head == "labels" else output
        prepared.timings["labels_ms"] = _ms_since(start)
        upscale = self.processing.upscale
        return Result(prepared.source, image, labels, logits, card, prepared.timings, prepared.tag, upscale)


def _tagged(images: Iterable[Tagged]) -> Iterator[tuple[ImageSource | ImageError, Any, float]]:
    """Yield each picture with its tag and the milliseconds that its source took for it."""
    start = time.perf_counter()
    for number, item in enumerate(images):
        read_ms = _ms_since(start)
        if isinstance(item, SourceItem):
            yield item.picture, item, read_ms
        else:
            yield (*item, read_ms) if isinstance(item, tuple) else (item, number, read_ms)
        start = time.perf_counter()


def _remade(model: Path, arguments: dict[str, Any]) -> Segmenter:
    return Segmenter(model, **arguments)


def _ms_since(start: float) -> float:
    return (time.perf_counter() - start) * 1000
