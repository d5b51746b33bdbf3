"""What a worker of a Ray job does: a segmenter, opened once, and batches of pictures.

Apart from ``ray_job``, so that a worker imports no more than it needs.
"""

import dataclasses
import json
import pickle
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from segship.runtime.error_transport import error_values
from segship.runtime.errors import EngineCrashError, SegshipError, UnprovenWarning
from segship.runtime.images import ImageSource, source_name
from segship.runtime.outputs import OutputKind, OutputOptions
from segship.runtime.records import plain_timings, record
from segship.runtime.result import Result
from segship.runtime.segmenter import Segmenter

_MOST_DEATHS: Final = 2  # alone with the same picture


@dataclass(frozen=True)
class WorkerJob:
    """What every worker of a job is told.

    Attributes:
        model: the ``.onnx`` file.
        segmenter_args: further arguments of the segmenter.
        out: folder to write below.
        kinds: of outputs.
        output_options: how they are written.
    """

    model: Path
    segmenter_args: Mapping[str, Any]
    out: Path
    kinds: tuple[OutputKind, ...]
    output_options: OutputOptions


class Ledger:
    """Which pictures workers have begun and not ended, for all workers of a job: an actor of its own."""

    def __init__(self) -> None:
        self._batches: set[int] = set()
        self._begun: dict[int, int] = {}

    def begin_batch(self, numbers: Sequence[int]) -> bool:
        """Note a batch by its pictures' numbers; tell whether a worker has begun it before."""
        again = not self._batches.isdisjoint(numbers)
        self._batches.update(numbers)
        return again

    def begin(self, number: int) -> int:
        """Note one picture of a batch that is done again; return how many workers have died while they did it."""
        died = self._begun.get(number, 0)
        self._begun[number] = died + 1
        return died

    def end(self, number: int) -> None:
        """Note that a picture was no worker's death."""
        self._begun.pop(number, None)


class RayWorker:
    """Segments batches of pictures and writes their outputs.

    Args:
        job: what there is to do.
        ledger: handle of the :class:`Ledger`.
    """

    def __init__(self, job: WorkerJob, ledger: Any) -> None:
        import cv2

        self._job, self._ledger = job, ledger
        self._segmenter: Segmenter | None = None
        self._failure: SegshipError | None = None
        with warnings.catch_warnings(record=True, action="always", category=UnprovenWarning) as caught:
            try:
                self._segmenter = Segmenter(job.model, **job.segmenter_args)
            except SegshipError as error:  # told for each picture: Ray would only say that the worker died
                self._failure = error
        self._warnings = [str(one.message) for one in caught if issubclass(one.category, UnprovenWarning)]
        if self._segmenter and self._segmenter.info.backend != "opencv":
            cv2.setNumThreads(1)  # resizing in more threads would only take them from the engine

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[Any]]:
        """Do some pictures; return what there is to tell of each, as JSON texts.

        Args:
            batch: ``picture``: pickled tuples of a number, the picture and the name of its outputs.
        """
        import ray

        pictures = [pickle.loads(one) for one in batch["picture"]]  # noqa: S301  # our own, from ``ray_job``
        again = ray.get(self._ledger.begin_batch.remote([number for number, _, _ in pictures]))
        told = [one for picture in pictures for one in self._do_alone(picture)] if again else self._do(pictures)
        return {"told": [json.dumps(one | {"warnings": self._warnings}) for one in told]}

    def _do_alone(self, picture: tuple[int, ImageSource, Path]) -> list[dict[str, Any]]:
        """Do a picture of a batch whose worker has died, unless it is the one that workers die of."""
        import ray

        number, source, _ = picture
        died = ray.get(self._ledger.begin.remote(number))
        if died >= _MOST_DEATHS:
            error = EngineCrashError(
                f"{source_name(source)}: {died} workers died while they did it; --isolate says what the engine dies of"
            )
            return [{"number": number} | error_values(error)]
        told = self._do([picture])
        ray.get(self._ledger.end.remote(number))
        return told

    def _do(self, pictures: Sequence[tuple[int, ImageSource, Path]]) -> list[dict[str, Any]]:
        if self._segmenter is None:
            failure = error_values(self._failure or SegshipError("the worker has no segmenter"))
            return [{"number": number} | failure for number, _, _ in pictures]
        told: list[dict[str, Any]] = []
        job, segmenter = self._job, self._segmenter

        def write(result: Result) -> tuple[int, dict[str, Any], dict[str, float]]:
            number, name = result.tag
            paths = result.save(job.out, job.kinds, name=name, options=job.output_options)
            known = record(dataclasses.replace(result, tag=number), paths, only=segmenter.processing.only or ())
            return number, known, result.timings

        def fail(tag: tuple[int, Path], error: SegshipError) -> None:
            told.append({"number": tag[0]} | error_values(error))

        tagged = ((source, (number, name)) for number, source, name in pictures)
        engine = dataclasses.asdict(segmenter.info)
        for number, known, timings in segmenter.stream(tagged, then=write, on_error=fail):
            entry = known | {"timings_ms": plain_timings(timings)}
            told.append({"number": number, "engine": engine, "record": entry})
        return told
