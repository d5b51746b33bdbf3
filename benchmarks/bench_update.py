"""Of a run of two models on data: what changes when the second one takes the place of the first."""

import dataclasses
from collections.abc import Callable

from segship.benchmarks.accuracy import held_out
from segship.benchmarks.bench_options import BenchOptions
from segship.benchmarks.engine_choice import Choice, open_choice
from segship.benchmarks.model_update import compare_models, update_sheet
from segship.benchmarks.record import Bench, Failure
from segship.runtime.errors import SegshipError
from segship.runtime.render import RgbImage


def with_update(
    bench: Bench, options: BenchOptions, tell: Callable[[str], None], *, draws: bool
) -> tuple[Bench, RgbImage | None]:
    """Add to a run what changes with the new model, where there is an old and a new one.

    Models of which either's accuracy could not be measured are not compared: the run says why already. Whatever else
    goes wrong is a failure of the new one.

    Args:
        bench: the run.
        options: what it was of.
        tell: takes a line about what is done next.
        draws: whether the pictures that changed most are drawn.

    Returns:
        The run, and the drawing.
    """
    engine = options.engine_of_update
    measured = {entry.subject.model for entry in bench.entries if entry.subject.asked == engine and entry.accuracy}
    if engine is None or not measured >= set(map(str, options.models)):
        return bench, None
    tell(f"comparing both models in {engine}")
    try:
        dataset, _ = held_out(str(options.data), options.limit)
        old, new = (Choice(model, engine, options.device, threads=options.threads) for model in options.models)
        with open_choice(old) as first, open_choice(new) as second:
            update = compare_models(first, second, dataset)
            sheet = update_sheet(update, dataset, first, second) if draws else None
    except SegshipError as error:
        failed = Failure(str(options.models[1]), engine, f"comparison with {options.models[0]}: {error}")
        return dataclasses.replace(bench, failures=(*bench.failures, failed)), None
    return dataclasses.replace(bench, update=update), sheet
