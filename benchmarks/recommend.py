"""Which model in which engine with which settings? Found by trying them, within a limit of time."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from segship.benchmarks.bench_picture import NOISE
from segship.benchmarks.candidates import candidates, check_engines, command_line, python_lines, working_engines
from segship.benchmarks.record import BenchError, Failure
from segship.benchmarks.settings_search import NO_TIME, Search
from segship.benchmarks.wishes import WISHES, Tried, Untried, Wish

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["Recommendation", "Wish", "recommend", "recommendation_lines", "recommendation_table"]

SAME_MIOU: Final = 0.001
"""Differences of mIoU that are smaller come from rounding in the engines, and say nothing."""


@dataclass(frozen=True)
class Recommendation:
    """What came of a search.

    Attributes:
        wish: what was asked for.
        best: what fulfils it best; None: nothing does.
        why: it is the best one and what the runner-up lacks, or why there is none.
        command: that runs it so; empty where there is none.
        python: likewise, lines of Python.
        nearest: where nothing fits, what comes nearest to each wish, by the wish's name.
        tried: everything that ran, the best first.
        untried: what was left out, and why.
        failures: what does not run here.
        picture: what was timed: a file's name, the first picture of the data, or ``noise``.
    """

    wish: Wish
    best: Tried | None
    why: str
    command: str
    python: str
    nearest: dict[str, Tried]
    tried: tuple[Tried, ...]
    untried: tuple[Untried, ...]
    failures: tuple[Failure, ...]
    picture: str = NOISE

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain values, for JSON."""
        return dataclasses.asdict(self)


def recommend(
    models: Sequence[Path],
    wish: Wish,
    *,
    backends: Sequence[str] = (),
    device: str = "auto",
    threads: int | None = None,
    data: str | None = None,
    limit: int | None = None,
    picture: Path | None = None,
    seconds: float = 300.0,
    tell: Callable[[str], None] = lambda _: None,
) -> Recommendation:
    """Try models in engines with settings, and return what fulfils a wish best.

    The search is successive halving (Jamieson and Talwalkar, "Non-stochastic Best Arm Identification and Hyperparameter
    Optimization", 2016): everything gets a few runs, the most promising first; what cannot keep to the latency is out,
    and of what has the same accuracy (one file in one engine and precision) the slower half; the rest gets more runs;
    and so on, until few are left that are measured in turns. Accuracy, which takes longest, is measured last, once for
    each file, engine and precision, of those that fulfil all else.

    A latency is that of a picture that comes alone, from a file's bytes to the bytes of its mask (of a batch: of the
    whole batch, for which its first picture waits). A limit of it is one of the 95th percentile: who asks for 20 ms
    means that frames keep to it; the median would let half of them miss it, and a 99th percentile of 100 runs is the
    second-slowest of them, which is chance.

    The best is the one of the highest mIoU; of those within 0.001 of it the one of the lowest latency. Where nothing
    but a mIoU is asked for, or none is measured, it is the one of the lowest latency.

    Args:
        models: exported files.
        wish: what is asked for.
        backends: engines to try, ``NAME[:KEY=VALUE,…]``; none: all that work here.
        device: ``auto``, ``cpu`` or ``cuda[:N]``.
        threads: of each engine; None: several numbers are tried.
        data: dataset whose validation part accuracy is measured on, ``KIND:DIR``.
        limit: of its pictures, spread evenly.
        picture: file that is timed; None: the first one of ``data``, otherwise noise.
        seconds: after which nothing new is begun; but something runs a few times, and the first of those that keep to
            the latency is measured in all that is asked for, whatever this is. What is under way then is finished.
        tell: takes a line about what is done next.

    Raises:
        BenchError: if a mIoU is asked for without data, no engine works, an engine's options are none, or the picture
            cannot be read.
        DatasetError: if there is no such dataset.
        ModelError: if a file is missing or damaged.
    """
    if wish.min_miou is not None and data is None:
        raise BenchError(f"a mIoU of {wish.min_miou:g} can only be found with pictures and their truth; give --data")
    search = Search(models, wish, seconds, tell, data=data, limit=limit, picture=picture)
    tell("trying the engines")
    engines, failures = working_engines(backends, device)
    check_engines(engines, failures)
    search.failures += failures
    search.run(candidates(models, engines, threads=threads, for_rate=wish.min_images_per_s is not None))
    choices = {tried: choice for choice, tried in search.found}
    tried = ranked(wish, list(choices))
    best = tried[0] if tried and not tried[0].lacks else None
    return Recommendation(
        wish,
        best,
        _why_best(tried) if best else _why_none(wish, tried, search.untried),
        command_line(choices[best], best.engine) if best else "",
        python_lines(choices[best], best.engine) if best else "",
        {} if best else _nearest(wish, tried),
        tuple(tried),
        tuple(search.untried),
        tuple(search.failures),
        search.picture,
    )


def recommendation_lines(found: Recommendation) -> list[str]:
    """Return the answer in lines of text, to stand below the table."""
    lines = [found.why]
    if found.best is not None:
        proof = found.best.certificate
        lines.append(f"its certificate: {proof}" if proof else "no certificate covers it; see seg-check model")
        lines += ["", found.command, "", found.python]
    lines += [f"nearest to {WISHES[name].text}: {one.name}, {one.figure(name)}" for name, one in found.nearest.items()]
    lines += [f"not tried: {one.name}: {one.why}" for one in found.untried]
    return lines + [f"does not run: {one.model}, {one.asked}: {one.error}" for one in found.failures]


def recommendation_table(found: Recommendation) -> "Table":
    """Return everything that ran as a table, the best first."""
    from rich.table import Table

    table = Table(title="tried, the best first", caption=f"asked for: {found.wish}; picture: {found.picture}")
    texts = ("file", "engine", "precision", "lacks")
    rated = any(one.images_per_s is not None for one in found.tried)
    weighed = any(one.memory_mb is not None for one in found.tried)
    columns = ["file", "engine", "precision", "threads", "batch", "runs", "p50 ms", "p95 ms", "mIoU"]
    columns += ["images/s"] * rated + ["MB"] * weighed + ["lacks"]
    for column in columns:
        table.add_column(column, justify="left" if column in texts else "right")
    for one in found.tried:
        cells = [Path(one.model).name, one.asked, one.engine.precision, str(one.engine.threads), str(one.batch)]
        cells += [str(one.runs), f"{one.p50_ms:.2f}", f"{one.p95_ms:.2f}", _cell(one.miou, ".4f")]
        cells += [_cell(one.images_per_s, ".1f")] * rated + [_cell(one.memory_mb, ".0f")] * weighed
        table.add_row(*cells, "; ".join(one.lacks), style="bold" if one == found.best else None)
    return table


def _cell(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def ranked(wish: Wish, tried: Sequence[Tried]) -> list[Tried]:
    """Sort what was tried: what fits, the best first, as :func:`recommend` says; then what was measured whole."""
    fitting = [one for one in tried if not one.lacks]
    rest = sorted((one for one in tried if one.lacks), key=lambda one: (one.is_screened, len(one.lacks), one.p95_ms))
    best_first: list[Tried] = []
    while fitting:
        enough = 0.0 if wish.only_accuracy else max(one.miou or 0.0 for one in fitting) - SAME_MIOU
        chosen = min((one for one in fitting if (one.miou or 0.0) >= enough), key=lambda one: one.p95_ms)
        fitting.remove(chosen)
        best_first.append(chosen)
    return best_first + rest


def _why_best(tried: Sequence[Tried]) -> str:
    best, others = tried[0], tried[1:]
    fitting = [one for one in others if not one.lacks]
    text = f"{best.name}: p95 {best.p95_ms:.2f} ms of {best.runs} runs (one frame in twenty may take longer)"
    text += "" if best.miou is None else f", mIoU {best.miou:.4f}"
    if not others:
        return f"{text}; nothing else was tried"
    if not fitting:
        whole = sum(not one.is_screened for one in tried)
        text += f"; the only one that fits, of {whole} measured whole and {len(tried)} tried"
        return f"{text}. Next: {others[0].name}: {'; '.join(others[0].lacks)}"
    runner_up = fitting[0]
    difference = (best.miou or 0.0) - (runner_up.miou or 0.0)
    if difference > SAME_MIOU:
        lacks = f"{100 * difference:.2f} points of mIoU less"
    else:
        lacks = f"p95 {runner_up.p95_ms:.2f} ms" + ("" if best.miou is None else f", mIoU {runner_up.miou or 0.0:.4f}")
    return f"{text}; the best of {1 + len(fitting)} that fit. Next: {runner_up.name}: {lacks}"


def _why_none(wish: Wish, tried: Sequence[Tried], untried: Sequence[Untried]) -> str:
    if not tried:
        return "nothing was tried; see below why"
    is_short = any(
        NO_TIME in why for why in (*(lack for one in tried for lack in one.lacks), *(u.why for u in untried))
    )
    text = f"none of {len(tried)} tried fulfils: {wish}"
    return f"{text}, as far as that was measured in time; give more of it" if is_short else text


def _nearest(wish: Wish, tried: Sequence[Tried]) -> dict[str, Tried]:
    """Return what comes nearest to each wish, of all whose figure for it was measured."""
    found = {}
    for name, kind in WISHES.items():
        measured = [one for one in tried if getattr(one, kind.figure) is not None]
        whole = [one for one in measured if not one.is_screened] or measured
        if getattr(wish, name) is not None and whole:
            sign = 1 if kind.is_upper else -1
            found[name] = min(whole, key=lambda one: sign * getattr(one, kind.figure))
    return found
