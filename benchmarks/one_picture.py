"""One picture, from a file's bytes to a file's bytes, with a stamp after each stage."""

from collections.abc import Callable
from typing import Any

from numpy.typing import NDArray

from segship.benchmarks.engine_choice import share_cv2_threads
from segship.benchmarks.record import PICTURE, STAGES, BenchError
from segship.benchmarks.sampling import timed
from segship.runtime.labels import Labels
from segship.runtime.prepare import TiledPicture, WholePicture
from segship.runtime.preprocess import Image
from segship.runtime.render import encode_mask
from segship.runtime.segmenter import Segmenter

Prepared = WholePicture | TiledPicture


class Road:
    """The road of a picture through the runtime, the one that ships: the stages are the segmenter's own.

    A call takes a batch along it once, every stage all of the batch:

    - ``decode``: a file's bytes to pixels in the model's form;
    - ``preprocess``: those to what the graph takes. Of a picture that is cut into tiles nothing, since each tile is
      prepared just before its run, as a part of ``network``;
    - ``transfer``: to the GPU and back, of engines that tell it; it is then no part of ``network``;
    - ``network``: one run, from the graph's input to logits, checked;
    - ``postprocess``: logits brought to the picture's size, and labels;
    - ``encode``: labels to a PNG with the classes' colours as its palette.

    Args:
        segmenter: model and engine, as :func:`~segship.benchmarks.engine_choice.open_choice` opens them.
        encoded: a picture file's bytes.
        batch: pictures in a run of the network.

    Attributes:
        segmenter: as given.
        labels: of each picture of the last call, (H, W).
        masks: their files' bytes.

    Raises:
        BenchError: if several pictures are to be run at once by a model that cuts them into tiles.
    """

    def __init__(self, segmenter: Segmenter, encoded: bytes, batch: int = 1) -> None:
        if batch > 1 and segmenter.processing.tiling is not None:
            raise BenchError(f"{segmenter.model} cuts pictures into tiles, a picture at a time; give a batch of 1")
        self.segmenter, self._encoded, self._batch = segmenter, encoded, batch
        self._stages: dict[str, Callable[[Any], Any]] = {
            "decode": self._decode,
            "preprocess": self._preprocess,
            "network": self._network,
            "postprocess": self._postprocess,
            "encode": self._encode,
        }
        self._sizes: list[tuple[int, int]] = []
        self.labels: list[Labels] = []
        self.masks: list[bytes] = []

    def __call__(self) -> dict[str, int]:
        """Take the batch from bytes to bytes; return nanoseconds by stage, and of all of them as ``picture``.

        Raises:
            ImageError: if the picture cannot be read.
            BackendError: if the engine fails or returns what the card does not promise.
        """
        share_cv2_threads(self.segmenter)
        before = self.segmenter.transfer_ns
        taken = timed(self._stages)
        after = self.segmenter.transfer_ns
        if before is None or after is None:
            return taken
        transfer = after - before
        taken |= {"network": taken["network"] - transfer, "transfer": transfer}
        return {stage: taken[stage] for stage in (*STAGES, PICTURE)}

    def _decode(self, _: None) -> list[Image]:
        return [self.segmenter.processing.read(self._encoded) for _ in range(self._batch)]

    def _preprocess(self, images: list[Image]) -> list[Prepared]:
        self._sizes = [(image.shape[0], image.shape[1]) for image in images]
        return [self.segmenter.processing.prepare(image) for image in images]

    def _network(self, prepared: list[Prepared]) -> list[NDArray[Any]]:
        return self.segmenter.processing.infer(prepared)

    def _postprocess(self, outputs: list[NDArray[Any]]) -> list[Labels]:
        self.labels = [self.segmenter.processing.labels(*each) for each in zip(outputs, self._sizes, strict=True)]
        return self.labels

    def _encode(self, labels: list[Labels]) -> None:
        self.masks = [encode_mask(each, self.segmenter.card) for each in labels]
