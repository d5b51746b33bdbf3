"""The command ``seg-bench``."""

import dataclasses
import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

import click

import segship
from segship.benchmarks.quantities import MARGIN, MEMORY, RATE, SHARE, TIME, TOLERANCE
from segship.runtime.console import complete_backends, device_option, run
from segship.runtime.errors import EXIT_ERROR, EXIT_OK, EXIT_SKIPPED, require

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rich.table import Table

    from segship.benchmarks.bench_options import BenchOptions
    from segship.benchmarks.update_facts import ModelUpdate

_PATH: Final = click.Path(path_type=Path)
_SETTINGS: Final = {"help_option_names": ["-h", "--help"], "show_default": True, "max_content_width": 100}
_WIDTH: Final = 120
"""Characters in a line where no terminal says how many there are."""

_WISHES: Final = ("min_miou", "min_rate", "max_memory")
_PRINTED: Final = {"as_json", "quiet"}
_COMMON: Final = {"backends", "device", "threads", "data", "limit", "picture"}
_TAKEN: Final = {
    "compare": {"margin", "tolerance", "out", "overwrite"},
    "recommend": {*_COMMON, "max_latency", "min_miou", "min_rate", "max_memory", "time_limit"},
    "measure": {
        *_COMMON,
        *("batches", "checkpoint", "quick", "profile", "concurrency", "tolerance", "out", "overwrite"),
    },
}
"""What each way to use the command has a use for, beside what is printed."""


@click.command(context_settings=_SETTINGS)
@click.argument("models", metavar="MODEL...", type=_PATH, nargs=-1)
@click.option(
    "--backend",
    "backends",
    multiple=True,
    shell_complete=complete_backends,
    metavar="NAME[:KEY=VALUE,…]",
    help="Engine, with options of it; repeatable. torch runs --checkpoint.  [default: ort, else opencv]",
)
@device_option
@click.option("--threads", type=click.IntRange(1), help="CPU threads of each engine.  [default: the CPUs it may use]")
@click.option(
    "--batch",
    "batches",
    type=click.IntRange(1),
    multiple=True,
    help="Pictures in a run of the network; repeatable.  [default: 1]",
)
@click.option("--checkpoint", type=_PATH, help="That a MODEL was exported from, for --backend torch.")
@click.option("--data", metavar="KIND[:DIR]", help="Also measure accuracy on this dataset's validation part.")
@click.option("--limit", type=click.IntRange(1), help="Measure it on so many pictures, spread evenly.")
@click.option("--picture", type=_PATH, help="That single runs are of.  [default: the first of --data, else noise]")
@click.option("--quick", is_flag=True, help="Measure less, to see where one stands; the tables say so.")
@click.option("--profile", is_flag=True, help="Also tell which operators take the time, in ONNX Runtime.")
@click.option(
    "--concurrency", type=click.IntRange(1), help="Runs of the network at once, at most.  [default: usable CPUs]"
)
@click.option(
    "--tolerance",
    type=SHARE,
    help="mIoU that the new one may lose, such as 1%: of two MODELs with --data, old and new (left out: any), or of "
    f"two records (left out: {TOLERANCE:.1%}).",
)
@click.option("--compare", nargs=2, type=_PATH, metavar="OLD.json NEW.json", help="Compare two records, and stop.")
@click.option(
    "--margin", type=SHARE, default=f"{MARGIN:.0%}", help="For --compare: slower by no more than this is no regression."
)
@click.option("--recommend", is_flag=True, help="Look for the settings of MODELs that keep to the limits below.")
@click.option("--max-latency", type=TIME, help="For --recommend: that a picture may take, such as 20ms.")
@click.option("--min-miou", type=click.FloatRange(0, 1), help="For --recommend: mIoU on --data that it must reach.")
@click.option("--min-rate", type=RATE, help="For --recommend: pictures a second that it must do, several at once.")
@click.option("--max-memory", type=MEMORY, help="For --recommend: that its process may use at most.")
@click.option("--time-limit", type=TIME, default="5m", help="For --recommend: begin nothing new after this time.")
@click.option("--out", type=_PATH, help="New folder for tables, plots and the record; of --compare for the comparison.")
@click.option(
    "--overwrite",
    is_flag=True,
    help="Write into a folder that is there already, in place of what an earlier run wrote.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON document.")
@click.option("-q", "--quiet", is_flag=True, help="Print only errors, and what --json asks for.")
@click.version_option(segship.__version__)
def seg_bench(*, models: tuple[Path, ...], **options: Any) -> int:
    """Measure MODELs in every engine asked for: latency, throughput, memory, accuracy, and how near to the limit.

    All take turns on the same picture, from a file's bytes to the bytes of its mask: --picture, or the first one of
    --data; without both noise of the size of each network. What cannot be measured is reported with its reason, the
    rest is done, and the exit status is then 3. It is 1 if --compare finds a regression, the new one of two MODELs
    loses more than --tolerance, or --recommend finds nothing that fits.
    """
    mode = "compare" if options["compare"] else "recommend" if options["recommend"] else "measure"
    _refuse_what_has_no_use(mode)
    if mode == "compare":
        if models:
            raise click.UsageError("--compare compares records that are there already; leave out the models")
        return _compare(options)
    if not models:
        raise click.UsageError("Missing argument 'MODEL...': what is to be measured?")
    if options["limit"] is not None and options["data"] is None:
        raise click.UsageError("--limit is of the pictures of --data; give both, or neither")
    for module in ("onnx", "matplotlib"):
        require(module, extra="bench", purpose="seg-bench")
    return _recommend(models, options) if mode == "recommend" else _measure(models, options)


def _refuse_what_has_no_use(mode: str) -> None:
    """Refuse options that what is asked for would ignore."""
    context = click.get_current_context()
    for param in context.command.params:
        source = context.get_parameter_source(str(param.name))
        is_given = source is click.core.ParameterSource.COMMANDLINE
        if is_given and param.name not in {*_TAKEN[mode], *_PRINTED, "models", mode}:
            way = "measuring" if mode == "measure" else f"--{mode}"
            raise click.UsageError(f"{way} has no use for {param.opts[0]}; leave it out")


def _measure(models: tuple[Path, ...], options: dict[str, Any]) -> int:
    from segship.benchmarks.bench import run_bench
    from segship.benchmarks.bench_files import check_folder, write_run
    from segship.benchmarks.bench_notes import notes
    from segship.benchmarks.bench_table import bench_tables
    from segship.benchmarks.bench_update import with_update
    from segship.benchmarks.model_update import update_table
    from segship.benchmarks.record import bench_json

    asked, out = _bench_options(models, options), options["out"]
    if options["tolerance"] is not None and asked.engine_of_update is None:
        raise click.UsageError("--tolerance is of two models, the old one and the new one, on --data; give all three")
    if out is not None:
        check_folder(out, overwrite=options["overwrite"])
    bench, sheet = run_bench(asked, _teller(options)), None
    is_shown, told = not (options["as_json"] or options["quiet"]), 0
    if is_shown:
        _print(bench_tables(bench), notes(bench))
        told = len(bench.failures)
    if not options["quiet"] or options["as_json"] or out is not None or options["tolerance"] is not None:
        bench, sheet = with_update(bench, asked, _teller(options), draws=out is not None)
    if options["as_json"]:
        click.echo(bench_json(bench))
    elif is_shown and bench.update is not None:
        click.echo()
        _print([update_table(bench.update)], [])
    for failed in bench.failures[told:]:
        click.echo(f"error: {failed.model}, {failed.asked}: {failed.error}", err=True)
    if out is not None:  # after all is printed, should the disk be full
        write_run(bench, out, sheet)
    is_refused = options["tolerance"] is not None and _is_refused(bench.update, options["tolerance"])
    if is_refused or not bench.entries:
        return EXIT_ERROR
    return EXIT_SKIPPED if bench.failures else EXIT_OK


def _bench_options(models: tuple[Path, ...], options: dict[str, Any]) -> "BenchOptions":
    """Turn options as they were typed into what they mean.

    Raises:
        click.UsageError: if PyTorch is asked for without its checkpoint, or one is given for nothing.
    """
    from segship.benchmarks.bench_options import TORCH, BenchOptions
    from segship.runtime.backends import default_backend

    backends = options["backends"] or (default_backend(),)
    asks_torch = any(asked.partition(":")[0] == TORCH for asked in backends)
    if asks_torch != (options["checkpoint"] is not None):
        raise click.UsageError("--backend torch and --checkpoint FILE go together; give both, or neither")
    own = {field.name for field in dataclasses.fields(BenchOptions)} & options.keys()
    values = {name: options[name] for name in own} | {"backends": backends, "batches": options["batches"] or (1,)}
    return BenchOptions(models=models, command=shlex.join(["seg-bench", *sys.argv[1:]]), **values)


def _recommend(models: tuple[Path, ...], options: dict[str, Any]) -> int:
    from segship.benchmarks.recommend import recommend, recommendation_lines, recommendation_table
    from segship.benchmarks.wishes import Wish

    latency = options["max_latency"]
    found = recommend(
        models,
        Wish(None if latency is None else 1000 * latency, *(options[name] for name in _WISHES)),
        seconds=options["time_limit"],
        tell=_teller(options),
        **{name: options[name] for name in ("backends", "device", "threads", "data", "limit", "picture")},
    )
    if options["as_json"]:
        click.echo(json.dumps(found.to_dict(), ensure_ascii=False))
    elif not options["quiet"]:
        _print([recommendation_table(found)] if found.tried else [], recommendation_lines(found))
    return EXIT_ERROR if found.best is None else EXIT_OK


def _is_refused(update: "ModelUpdate | None", tolerance: float) -> bool:
    """Tell whether the new model loses more than is tolerated, or nobody knows, and say so."""
    if update is None:
        click.echo(
            "error: the two models cannot be compared, so that the new one keeps to --tolerance is not known", err=True
        )
        return True
    if not update.is_worse(tolerance):
        return False
    lost = f"{-100 * update.miou_difference:.2f} points of mIoU"
    click.echo(f"error: {update.new} loses {lost}; --tolerance allows {100 * tolerance:g}", err=True)
    return True


def _compare(options: dict[str, Any]) -> int:
    from segship.benchmarks.bench_files import check_folder, comparison_json, write_comparison
    from segship.benchmarks.compare_runs import compare_benches, has_regressed
    from segship.benchmarks.compare_table import comparison_notes, comparison_tables
    from segship.benchmarks.record import read_bench

    out = options["out"]
    if out is not None:
        check_folder(out, overwrite=options["overwrite"])
    old, new = map(read_bench, options["compare"])
    tolerance = TOLERANCE if options["tolerance"] is None else options["tolerance"]
    rows = compare_benches(old, new, options["margin"], tolerance)
    if options["as_json"]:
        click.echo(comparison_json(rows))
    elif not options["quiet"]:
        _print(comparison_tables(rows), comparison_notes(rows))
    if out is not None:
        write_comparison(rows, out)
    return EXIT_ERROR if has_regressed(rows) else EXIT_OK


def _print(tables: "Sequence[Table]", lines: "Sequence[str]") -> None:
    """Print tables, as wide as the terminal is, and lines."""
    from rich.console import Console

    from segship.benchmarks.bench_table import fitting

    console = Console(highlight=False, emoji=False, markup=False)
    if not console.is_terminal:
        console.width = _WIDTH
    for table in tables:
        if table.title:
            console.print(table.title, style="bold", soft_wrap=True)
        for part in fitting(table, console.width):
            console.print(part)
            console.print()
        if table.caption:
            console.print(table.caption, soft_wrap=True)
    for line in lines:
        console.print(line, soft_wrap=True)


def _teller(options: dict[str, Any]) -> "Callable[[str], None]":
    return lambda step: None if options["quiet"] else click.echo(f"{step} …", err=True)


def main() -> NoReturn:
    """Run ``seg-bench``."""
    run(seg_bench)


if __name__ == "__main__":
    main()
