"""A job of ``seg-infer`` on a Ray cluster."""

from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from segship.runtime.big_pictures import is_big
from segship.runtime.card_values import read_card_file
from segship.runtime.class_choice import class_ids
from segship.runtime.errors import BackendError, SegshipError
from segship.runtime.infer_big import BIG_PX
from segship.runtime.infer_report import InferReport
from segship.runtime.output_plan import Plan
from segship.runtime.outputs import check_outputs, write_classes
from segship.runtime.palette_text import parse_palette
from segship.runtime.ray_job import run_on_ray
from segship.runtime.segmenter_plan import card_of
from segship.runtime.source_item import Source

if TYPE_CHECKING:
    from segship.runtime.infer import Job


def infer_on_ray(job: "Job", source: Source) -> int:
    """Spread the files of a job over a cluster.

    Returns:
        How many pictures were reported and skipped.

    Raises:
        BackendError: if the source is not made of files, or the cluster cannot do the job.
        SegshipError: what else ends a job on one machine.
    """
    from segship.runtime.infer import segmenter_arguments

    if source.items is None or job.video or job.ray is None:
        raise BackendError("--ray spreads pictures in files over machines; videos and streams run on one: leave it out")
    given = None if job.card_path is None else read_card_file(job.card_path)
    card = given or card_of(job.model)
    card = card if job.palette is None else parse_palette(job.palette, card)
    outputs = job.knobs.outputs
    if job.only is not None:
        outputs = replace(outputs, foreground=class_ids(job.only, card))
    check_outputs(job.kinds, card, outputs)
    plan = Plan(job, source)
    if "mask" in job.kinds:
        write_classes(job.out / "mask", card, overwrite=job.overwrite)
    items = list(plan.to_do(iter(source)))
    if big := [item.name for item in items if is_big(item.picture, above_px=BIG_PX)]:
        raise BackendError(f"{big[0]} is too large to be held as a whole, as --ray does; segment it without --ray")
    engine = job.knobs.engine if job.streams is None else replace(job.knobs.engine, streams=job.streams)
    what = {"model": str(job.model), "ray": job.ray}
    with InferReport(what, f"{job.model} on Ray ({job.ray})", source, style=job.style) as report:

        def fail(number: int, error: SegshipError) -> None:
            report.skip(items[number], error)

        def show(number: int, record: dict[str, Any]) -> None:
            report.show(record | {"tag": items[number].place.as_posix()})

        try:
            summary = run_on_ray(
                job.ray,
                job.model,
                [(item.picture, plan.name(item)) for item in items],
                out=job.out,
                kinds=job.kinds,
                output_options=outputs,
                segmenter_args=segmenter_arguments(job, engine) | {"card": given},
                on_result=show,
                on_error=fail,
            )
            report.add({"engines": [asdict(engine) for engine in summary.engines], "workers": summary.workers})
            report.is_complete = True
        finally:  # what was done is told, too, where an error ends the job
            report.end(job.out if job.kinds else None, left_out=plan.left_out)
        return report.skipped
