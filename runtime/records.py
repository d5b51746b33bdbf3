"""What is told of one result, as plain values: most of an entry of ``--json``, or of a line of ``--jsonl``."""

import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segship.runtime.outputs import OutputKind

if TYPE_CHECKING:
    from segship.runtime.result import Result


def record(
    result: "Result",
    written: Mapping[OutputKind, Path],
    *,
    time_s: float | None = None,
    captured: float | None = None,
    only: Collection[int] = (),
) -> dict[str, Any]:
    """Return what is known of a result, in types that JSON has.

    Args:
        result: of one picture.
        written: its files.
        time_s: position in a video, in seconds.
        captured: when a live frame was taken, in seconds since 1970.
        only: classes to give areas of; none: all.

    Returns:
        - ``source``, ``tag`` (as text, if JSON has no such type), ``time_s``, ``captured``,
        - ``height``, ``width`` in pixels,
        - ``areas``: for each class by name its ``pixels`` and their ``share`` of the picture, 0…1,
        - ``outputs``: path by kind.
    """
    height, width = result.labels.shape
    shown = set(only) or range(result.card.num_classes)
    names = [name for class_id, name in enumerate(result.card.class_names) if class_id in shown]
    areas = result.areas_px
    return {
        "source": result.source,
        "tag": _plain(result.tag),
        "time_s": time_s,
        "captured": captured,
        "height": height,
        "width": width,
        "areas": {name: {"pixels": areas[name], "share": areas[name] / (height * width)} for name in names},
        "outputs": {kind: str(path) for kind, path in written.items()},
    }


def plain_timings(timings: Mapping[str, float]) -> dict[str, float]:
    """Return a result's timings as they are told: milliseconds by stage."""
    return {stage.removesuffix("_ms"): round(ms, 3) for stage, ms in timings.items()}


def _plain(tag: object) -> object:
    """Return a tag as JSON can hold it."""
    if isinstance(tag, float) and not math.isfinite(tag):
        return str(tag)
    return tag if tag is None or isinstance(tag, bool | int | float | str) else str(tag)
