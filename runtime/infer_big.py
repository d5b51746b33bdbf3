"""The pictures of a job that are larger than is held in memory: one after the other, strip by strip."""

import sys
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Final

from segship.runtime.big_pictures import is_big
from segship.runtime.errors import OutputError, SegshipError
from segship.runtime.images import Page
from segship.runtime.outputs import OutputKind, output_paths
from segship.runtime.segmenter import Segmenter
from segship.runtime.source_item import Source, SourceItem
from segship.runtime.strips import StripResult, check_strips, segment_by_strips

if TYPE_CHECKING:
    from pathlib import Path

    from segship.runtime.infer import Job
    from segship.runtime.infer_report import InferReport
    from segship.runtime.output_plan import Plan

BIG_PX: Final = 32_000_000
"""Pixels above which a TIFF that is cut into tiles is read and written by strips."""


def is_for_strips(item: SourceItem, segmenter: Segmenter) -> bool:
    """Tell whether a picture is a TIFF so large that it is not held as a whole."""
    return segmenter.processing.tiling is not None and is_big(item.picture, above_px=BIG_PX)


def holds_big_pictures(source: Source) -> bool:
    """Tell whether a TIFF so large is among what is known beforehand."""
    return any(is_big(item.picture, above_px=BIG_PX) for item in source.known_items)


def check_big(job: "Job", segmenter: Segmenter, items: Sequence[SourceItem]) -> None:
    """Refuse what cannot be written of large pictures, before the first picture is read.

    Raises:
        OutputError: naming it.
    """
    if any(is_for_strips(item, segmenter) for item in items):
        check_strips(segmenter, job.kinds)
        if job.knobs.outputs.legend:
            raise OutputError(
                "a picture this large is written by strips, which have no room for a legend; leave it out"
            )


def infer_big(
    job: "Job", segmenter: Segmenter, items: Sequence[SourceItem], plan: "Plan", report: "InferReport"
) -> None:
    """Segment large pictures and write their outputs.

    Args:
        job: that they are part of.
        segmenter: that does it.
        items: the pictures.
        plan: of the outputs.
        report: that is told.

    Raises:
        SegshipError: if one cannot be done for a reason that the next one has, too.
    """
    for item in items:
        paths = output_paths(job.out, job.kinds, plan.name(item), job.knobs.outputs)
        picture = item.picture
        if not isinstance(picture, Page):
            picture = str(picture)
        with ExitStack() as stack:
            progress = _progress(job, item, stack)
            try:
                result = segment_by_strips(segmenter, picture, paths, alpha=job.knobs.outputs.alpha, progress=progress)
            except SegshipError as error:
                report.skip(item, error)
                continue
        report.show(_record(result, item, paths, segmenter.processing.only))


def _record(
    result: StripResult,
    item: SourceItem,
    paths: "dict[OutputKind, Path]",
    only: Collection[int] | None,
) -> dict[str, Any]:
    """Return what is told of a result, as of those of smaller pictures."""
    areas = {
        name: {"pixels": pixels, "share": result.areas[name]}
        for class_id, (name, pixels) in enumerate(result.areas_px.items())
        if only is None or class_id in only
    }
    return {
        "source": item.name,
        "tag": item.place.as_posix(),
        "time_s": None,
        "captured": None,
        "height": result.height,
        "width": result.width,
        "areas": areas,
        "outputs": {kind: str(path) for kind, path in paths.items()},
        "timings_ms": {"all": round(result.seconds * 1000, 3)},
    }


def _progress(job: "Job", item: SourceItem, stack: ExitStack) -> Callable[[int, int], None] | None:
    """Show how many tiles are done, where somebody watches."""
    if job.style == "quiet" or not sys.stderr.isatty():
        return None
    from rich.console import Console
    from rich.progress import Progress

    bar = stack.enter_context(Progress(console=Console(stderr=True), transient=True))
    task = bar.add_task(f"tiles of {item.name}", total=None)
    return lambda done, total: bar.update(task, completed=done, total=total)
