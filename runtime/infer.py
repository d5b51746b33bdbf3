"""A job of ``seg-infer``: from sources to files."""

import dataclasses
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click
import cv2

from segship.runtime.backends import default_backend
from segship.runtime.backends.gpus import has_nvidia_driver
from segship.runtime.backends.options import EngineOptions
from segship.runtime.card_values import read_card_file
from segship.runtime.errors import OutputError
from segship.runtime.heap import share_one_heap
from segship.runtime.images import Conversion
from segship.runtime.infer_big import check_big, holds_big_pictures, infer_big, is_for_strips
from segship.runtime.infer_report import InferReport, Style
from segship.runtime.knobs import Knobs
from segship.runtime.output_plan import Plan
from segship.runtime.outputs import OUTPUT_KINDS, OutputKind, OutputOptions, check_outputs, write_classes
from segship.runtime.printable import printable
from segship.runtime.processing import Upscale
from segship.runtime.records import record
from segship.runtime.render import RgbImage
from segship.runtime.result import Result
from segship.runtime.segmenter import Segmenter
from segship.runtime.segmenter_plan import card_of
from segship.runtime.source_item import Source, SourceItem
from segship.runtime.sources import open_sources
from segship.runtime.video_sink import VideoSink

VIDEO: Final = "video"
"""What ``--save`` takes beside the kinds of files of single pictures."""

_STREAMING_BACKENDS: Final = ("ort",)
_MANY: Final = 4
"""Pictures from which on a run of the network on each core beats all cores on one picture."""

_MOST_STREAMS: Final = 8
"""Each holds its own intermediate values in memory."""


@dataclass(frozen=True)
class Job:
    """What is to be done: the options of ``seg-infer`` under their names.

    Attributes:
        knobs: of engine, labels and outputs.
        streams: runs of the network at once; None: as many as the job can use.
        video: whether a video is written, of a source that is one.
        style: how it is told.
    """

    model: Path
    sources: Sequence[str]
    knobs: Knobs
    backend: str | None
    device: str
    streams: int | None
    batch: int | None
    size: tuple[int, int] | None
    tile: tuple[int, int] | None
    overlap: float | None
    max_pixels: int
    convert: Sequence[Conversion]
    card_path: Path | None
    limit: int | None
    skip_existing: bool
    latest: bool | None
    out: Path
    kinds: Sequence[OutputKind]
    video: bool
    upscale: Upscale
    palette: str | None
    only: Sequence[str] | None
    isolate: bool
    ray: str | None
    overwrite: bool
    style: Style


def infer(job: Job) -> int:
    """Do a job.

    Returns:
        How many pictures were reported and skipped.

    Raises:
        SegshipError: if it cannot be done, or not go on.
    """
    share_one_heap()
    with ExitStack() as stack:
        source = stack.enter_context(
            open_sources(
                job.sources,
                leave_out=[job.out / kind for kind in (*OUTPUT_KINDS, VIDEO)],
                limit=job.limit,
                latest=job.latest,
                max_pixels=job.max_pixels,
                tell=lambda line: click.echo(line, err=True),
            )
        )
        if source.is_live and job.style == "json" and job.limit is None:
            raise click.UsageError("--json prints one document at the end, and a live source has none; take --jsonl")
        if job.video and not source.is_video:
            raise OutputError("--save video is for one video or stream; give one alone, or save overlays")
        if job.ray is not None:
            from segship.runtime.infer_on_ray import infer_on_ray

            return infer_on_ray(job, source)
        segmenter = stack.enter_context(open_segmenter(job, source))
        return _infer_here(job, segmenter, source)


def prepare_engine(job: Job) -> str:
    """Load the engine, let it build and keep what it will use, and return what runs.

    Unless the job is a quiet one, stderr is told what is built, and in the end how long that took.
    """
    from rich.console import Console

    start, is_told = time.perf_counter(), job.style != "quiet"
    with ExitStack() as stack:
        if is_told:
            engine = f"{job.backend or default_backend()} on {job.device}"
            click.echo(f"preparing {printable(job.model)} for {engine}; some engines build for minutes", err=True)
            stack.enter_context(Console(stderr=True).status("building"))  # turns on a terminal only
        segmenter = stack.enter_context(open_segmenter(job, None))
        segmenter.warmup()
        what = str(segmenter.info)
    if is_told:
        click.echo(f"prepared in {time.perf_counter() - start:.1f} s", err=True)
    return what


def open_segmenter(job: Job, source: Source | None) -> Segmenter:
    """Load the model for what a source has to offer; None: for single pictures."""
    card = None if job.card_path is None else read_card_file(job.card_path)
    engine = dataclasses.replace(job.knobs.engine, streams=_streams(job, source))
    if (job.backend or default_backend()) == "ort" and source is not None and holds_big_pictures(source):
        engine = dataclasses.replace(engine, memory_arena=False)  # half the memory, where that is what counts
    if source is not None and source.is_live and job.backend == "tensorrt":
        from segship.runtime.backends.tensorrt import require_prepared

        require_prepared(job.model, card or card_of(job.model), job.device, engine)  # a live source does not wait
    segmenter = Segmenter(job.model, card=card, **segmenter_arguments(job, engine))
    if segmenter.info.backend != "opencv":
        cv2.setNumThreads(1)  # resizing in more threads would only take them from the engine
    return segmenter


def segmenter_arguments(job: Job, engine: EngineOptions) -> dict[str, Any]:
    """Return a job's further arguments of :class:`Segmenter`."""
    return {
        "backend": job.backend,
        "device": job.device,
        "options": engine,
        "size": job.size,
        "tile": job.tile,
        "overlap": job.overlap,
        "batch": job.batch,
        "upscale": job.upscale,
        "convert": job.convert,
        "max_pixels": job.max_pixels,
        "post": job.knobs.post,
        "only": job.only,
        "palette": job.palette,
        "isolate": job.isolate,
    }


def _infer_here(job: Job, segmenter: Segmenter, source: Source) -> int:
    outputs, kinds = _outputs(job, segmenter), job.kinds
    check_outputs(kinds, segmenter.card, outputs)
    check_big(job, segmenter, source.known_items)
    plan = Plan(job, source)
    if "mask" in kinds:
        write_classes(job.out / "mask", segmenter.card, overwrite=job.overwrite)
    report = InferReport(segmenter.describe(), _headline(segmenter), source, style=job.style, crew=segmenter.crew)
    big: list[SourceItem] = []
    written_to = job.out if kinds or job.video else None
    with report, VideoSink(job, source, outputs) as video:

        def finish(result: Result) -> tuple[Path, RgbImage | None, dict[str, Any], dict[str, float]]:
            item: SourceItem = result.tag
            written = result.save(job.out, kinds, name=plan.name(item), options=outputs)
            frame = video.frame(result) if job.video else None
            told = dataclasses.replace(result, tag=item.place.as_posix())
            times = {"time_s": item.time_s, "captured": item.captured}
            known = record(told, written, only=segmenter.processing.only or (), **times)
            return item.place, frame, known, result.timings

        def pictures() -> Iterator[SourceItem]:
            for item in plan.to_do(iter(source)):
                if is_for_strips(item, segmenter):
                    big.append(item)
                else:
                    yield item

        is_fresh = source.is_live and job.latest is not False
        try:
            for place, frame, told, timings in segmenter.stream(
                pictures(), then=finish, on_error=report.skip, is_live=is_fresh
            ):
                if frame is not None:
                    video.write(place, frame)
                report.show(told, timings)
            infer_big(job, segmenter, big, plan, report)
            report.is_complete = True
        finally:  # Ctrl-C is how a live source ends, and what was done of others is told, too
            report.end(written_to, left_out=plan.left_out)
        return report.skipped


def _outputs(job: Job, segmenter: Segmenter) -> OutputOptions:
    """Return how outputs are drawn, now that the model's classes are known."""
    outputs = job.knobs.outputs
    if segmenter.processing.only is not None:
        outputs = dataclasses.replace(outputs, foreground=segmenter.processing.only)
    if job.video:  # all frames have one legend, or they would differ in size
        ids = segmenter.processing.only or range(segmenter.card.num_classes)
        outputs = dataclasses.replace(outputs, legend_ids=tuple(sorted(ids)))
    return outputs


def _streams(job: Job, source: Source | None) -> int:
    """Return how many runs of the network go on at once: on many pictures and CPUs one each, else one.

    A run of its own on each core wastes nothing, where all cores on one picture wait for each other; but a single
    picture, and a live one, is then later.
    """
    if job.streams is not None or job.knobs.engine.streams > 1:
        return job.streams or job.knobs.engine.streams
    backend = job.backend or default_backend()
    takes_gpu = job.device not in ("auto", "cpu") or (job.device == "auto" and has_nvidia_driver())
    few = source is None or source.is_live or (source.count is not None and source.count < _MANY)
    if few or takes_gpu or job.isolate or backend not in _STREAMING_BACKENDS:
        return 1
    return min(job.knobs.engine.cpu_threads, _MOST_STREAMS)


def _headline(segmenter: Segmenter) -> str:
    card, tiling = segmenter.card, segmenter.processing.tiling
    name = card.network.arch if card.network else "network"
    height, width = card.preprocess.size
    tiles = "" if tiling is None else f", tiles of {tiling.size[0]}×{tiling.size[1]}, {tiling.overlap:.0%} overlap"
    upscale = ", labels brought to size" if segmenter.processing.upscale == "labels" else ""
    return f"{name} {height}×{width}{tiles}, {card.num_classes} classes{upscale}, by {segmenter.info}"
