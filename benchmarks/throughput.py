"""How many pictures a second, by the wall clock, with several runs of the network at once."""

import dataclasses
import math
import time
from collections.abc import Iterator, Sequence
from typing import Final

from segship.benchmarks.engine_choice import Choice, open_choice
from segship.benchmarks.record import Throughput
from segship.runtime.preprocess import Image
from segship.runtime.segmenter import Segmenter

_WARM_UPS: Final = 10
_LEAST: Final = 20
"""Pictures that are counted for each run at once, however slow they are."""


def measure_throughput(
    choice: Choice, encoded: bytes, concurrencies: Sequence[int], seconds: float
) -> tuple[Throughput, ...]:
    """Measure how many pictures a second the runtime does, for each number of runs of the network at once.

    One picture goes again and again through :meth:`~segship.runtime.segmenter.Segmenter.stream`, whose threads do many
    pictures at once: from decoded pixels to labels of the picture's size. Preprocessing, runs of ``choice.batch`` and
    postprocessing are in it; reading and decoding files and writing masks are not. The clock runs from one result to a
    later one of a stream that is in full swing, so neither its start nor its end is in it.

    Args:
        choice: model and engine.
        encoded: a picture file's bytes.
        concurrencies: runs of the network at once, each on its share of the threads; measured one after the other,
            each with an engine of its own.
        seconds: that each is measured at least.

    Raises:
        BackendError: if the engine runs fewer at once, as those of OpenCV and PyTorch, or fails.
        SegshipError: whatever opening the model or reading the picture raises.
    """
    measured = []
    for runs in concurrencies:
        options = dataclasses.replace(choice.options, streams=runs)
        with open_choice(choice, options=options) as segmenter:
            measured.append(_measured(segmenter, segmenter.processing.read(encoded), runs, choice.batch, seconds))
    return tuple(measured)


def _measured(segmenter: Segmenter, picture: Image, runs: int, batch: int, seconds: float) -> Throughput:
    """Measure from the end of a batch to the end of a later one, since the pictures of one come all at once."""
    is_done = False

    def pictures() -> Iterator[Image]:
        while not is_done:
            yield picture

    warm = runs * batch * math.ceil(_WARM_UPS / batch)
    least = runs * _LEAST
    start = taken = 0.0
    images = 0
    for done, _ in enumerate(segmenter.stream(pictures(), then=lambda _: None), start=1):
        now = time.perf_counter()
        if done == warm:
            start = now
        elif done > warm and done % batch == 0 and not is_done:
            images, taken = done - warm, now - start
            is_done = images >= least and taken >= seconds
    return Throughput(runs, images, taken)
