"""Many pictures on many machines: the same segmenter as one actor for each device of a Ray cluster.

Ray only hands out work; each worker opens a :class:`~segship.runtime.segmenter.Segmenter` and writes the files itself,
by the code that writes them on one machine. So the model, the pictures and the folder of the outputs must have the same
path on every machine of the cluster, on a shared file system, and segship must be installed on each.

When a worker dies, Ray starts another one and gives it the batch again. A file is written whole or not at all and its
content depends on the picture only, so what was there already is written once more and nothing is lost or doubled. A
picture that its workers die of is found by doing such a batch picture by picture, and is reported.
"""

import dataclasses
import json
import math
import os
import pickle
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from segship.runtime.backends import EngineInfo
from segship.runtime.backends.options import EngineOptions
from segship.runtime.error_transport import error_from_values
from segship.runtime.errors import (
    BackendError,
    ImageError,
    SegshipError,
    UnprovenWarning,
    one_line,
)
from segship.runtime.images import ImageSource, Page, source_name
from segship.runtime.outputs import OutputKind, OutputOptions, output_paths
from segship.runtime.ray_cluster import Share, connected, import_ray, share_of
from segship.runtime.ray_worker import Ledger, RayWorker, WorkerJob
from segship.runtime.strict import parse

_LARGEST_BATCH: Final = 32
_BATCHES_PER_WORKER: Final = 4  # at least, so that the last ones end at about the same time

Items = Sequence[tuple[ImageSource | ImageError, Path]]


@dataclass(frozen=True)
class RaySummary:
    """What became of a job.

    Attributes:
        done: number of pictures whose outputs are written.
        failed: number of those that were reported.
        workers: how many there were at once.
        engines: what ran on them, each once.
    """

    done: int
    failed: int
    workers: int
    engines: tuple[EngineInfo, ...]


def run_on_ray(
    address: str,
    model: Path,
    items: Items,
    *,
    out: Path,
    kinds: Sequence[OutputKind],
    output_options: OutputOptions | None = None,
    segmenter_args: Mapping[str, Any] | None = None,
    on_result: Callable[[int, dict[str, Any]], None] | None = None,
    on_error: Callable[[int, SegshipError], None] | None = None,
) -> RaySummary:
    """Segment pictures on a Ray cluster and write their outputs.

    Args:
        address: of the cluster, as ``ray.init`` takes it: ``HOST:PORT``, ``ray://HOST:PORT``, ``auto`` for the one that
            runs on this machine already; ``local`` starts one on this machine for this job.
        model: the ``.onnx`` file.
        items: pictures, with the names of their outputs (without suffix, may lead into folders). An error in place of a
            picture is reported as it is.
        out: folder to write below.
        kinds: of outputs, for each picture.
        output_options: how they are written; None: the defaults.
        segmenter_args: further arguments of :class:`~segship.runtime.segmenter.Segmenter`, which must be picklable.
            Without ``threads`` in its options, a worker on the CPU gets the CPUs of a whole machine.
        on_result: called in this thread with a picture's number and its record (``records.record``), once for each,
            in the order in which they are done.
        on_error: called likewise with the error of a picture that has no outputs; raise to end the job. Without it
            the error is raised.

    Raises:
        MissingExtraError: if Ray is not installed.
        BackendError: if the cluster is not to be reached, has no room for a worker, or its workers die of the job.
        DeviceError: if a device is asked for that the cluster does not have.

    Warns:
        UnprovenWarning: once for what the segmenters of the workers warn of.
    """
    ray = import_ray()
    arguments = dict(segmenter_args or {})
    heard = _Heard(items, out, kinds, output_options or OutputOptions(), on_result, on_error)
    numbers = heard.report_unopened()
    if not numbers:
        return heard.summary(0)
    with connected(ray, address):
        device, options = str(arguments.get("device", "auto")), arguments.get("options") or EngineOptions()
        share = share_of(ray, device, options)
        batch = max(1, min(_LARGEST_BATCH, len(numbers) // (_BATCHES_PER_WORKER * share.workers)))
        share = dataclasses.replace(share, workers=min(share.workers, math.ceil(len(numbers) / batch)))
        if not share.gpus:
            arguments["options"] = dataclasses.replace(options, threads=share.cpus)
        job = WorkerJob(_absolute(model), arguments, _absolute(out), tuple(kinds), heard.output_options)
        pictures = [(number, _everywhere(items[number][0]), items[number][1]) for number in numbers]
        try:
            for row in _rows(ray, pictures, batch, share, job):
                heard.take(json.loads(row["told"]))
        except ray.exceptions.RayError as error:
            raise BackendError(
                f"the Ray job failed ({one_line(error)}); check that segship of the same version is on every machine"
            ) from error
    heard.check_complete(numbers)
    return heard.summary(share.workers)


class _Heard:
    """What the workers have told so far, each picture counting once however often it was done."""

    def __init__(
        self,
        items: Items,
        out: Path,
        kinds: Sequence[OutputKind],
        output_options: OutputOptions,
        on_result: Callable[[int, dict[str, Any]], None] | None,
        on_error: Callable[[int, SegshipError], None] | None,
    ) -> None:
        self.output_options = output_options
        self._items, self._out, self._kinds = items, out, kinds
        self._on_result, self._on_error = on_result, on_error
        self._seen: set[int] = set()
        self._failed = 0
        self._engines: list[EngineInfo] = []
        self._warnings: set[str] = set()

    def report_unopened(self) -> list[int]:
        """Report the errors among the items; return the numbers of the pictures."""
        for number, (picture, _) in enumerate(self._items):
            if isinstance(picture, ImageError):
                self._fail(number, picture)
        return [number for number, (picture, _) in enumerate(self._items) if not isinstance(picture, ImageError)]

    def take(self, told: dict[str, Any]) -> None:
        """Hand on what a worker tells of one picture."""
        for text in told["warnings"]:
            if text not in self._warnings:
                self._warnings.add(text)
                warnings.warn(text, UnprovenWarning, stacklevel=3)
        number = int(told["number"])
        if number in self._seen:
            return
        if "error" in told:
            self._fail(number, error_from_values(told))
            return
        self._seen.add(number)
        engine = parse(EngineInfo, told["engine"], "what a worker says of its engine", BackendError)
        if engine not in self._engines:
            self._engines.append(engine)
        if self._on_result:
            picture, name = self._items[number]
            paths = output_paths(self._out, self._kinds, name, self.output_options)
            # In the words of the caller, whose relative paths mean nothing to a worker.
            own = {"source": source_name(picture), "outputs": {kind: str(path) for kind, path in paths.items()}}
            self._on_result(number, told["record"] | own)

    def check_complete(self, numbers: Collection[int]) -> None:
        """Check that something was told of each picture."""
        if missing := set(numbers) - self._seen:
            name = source_name(self._items[min(missing)][0])
            raise BackendError(f"the Ray workers ended without a word on {len(missing)} pictures, such as {name}")

    def summary(self, workers: int) -> RaySummary:
        """Return the counts."""
        return RaySummary(len(self._seen) - self._failed, self._failed, workers, tuple(self._engines))

    def _fail(self, number: int, error: SegshipError) -> None:
        self._seen.add(number)
        self._failed += 1
        if self._on_error is None:
            raise error
        self._on_error(number, error)


def _rows(
    ray: Any, pictures: Sequence[tuple[Any, ...]], batch: int, share: Share, job: WorkerJob
) -> Iterator[dict[str, Any]]:
    """Have batches of pictures done; yield what is told of each, in the order in which they are done.

    Ray Data replaces workers that die, and has their batches done again, without end; the ledger is what ends that.
    """
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    ledger = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Ledger).remote()
    # As bytes: a path may hold what is no text, and Ray's tables hold only text that is.
    rows = [{"picture": pickle.dumps(picture)} for picture in pictures]
    dataset = ray.data.from_items(rows, override_num_blocks=math.ceil(len(rows) / batch))
    done = dataset.map_batches(
        RayWorker,
        batch_size=batch,
        fn_constructor_args=(job, ledger),
        compute=ray.data.ActorPoolStrategy(size=share.workers),
        num_cpus=share.cpus,
        num_gpus=share.gpus or None,
    )
    yield from done.iter_rows()


def _everywhere(picture: ImageSource | ImageError) -> ImageSource | ImageError:
    """Return a picture whose path means the same on another machine."""
    if isinstance(picture, Page):
        return dataclasses.replace(picture, path=_absolute(picture.path))
    return _absolute(Path(picture)) if isinstance(picture, str | Path) else picture


def _absolute(path: Path) -> Path:
    return Path(os.path.abspath(path))  # noqa: PTH100  # links stay: they may lead elsewhere on another machine
