"""What a model may be run in on this machine: engines that work, their precision, threads, streams and batches."""

import dataclasses
import json
import shlex
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from segship.benchmarks.engine_choice import Choice
from segship.benchmarks.record import BenchError, Failure
from segship.runtime.backends import EngineInfo
from segship.runtime.backends.cpu_quota import available_cpus
from segship.runtime.check import installable_backends
from segship.runtime.probe import probe
from segship.runtime.segmenter_plan import GPU_BATCH, card_of

_PROMISE: Final = ("tensorrt", "openvino", "ort")
"""Engines that were mostly the fastest, best first; others come after them."""

_OWN_PRECISION: Final = ("openvino", "tensorrt")
_CPU_BATCH: Final = 4
"""A CPU gains little by more pictures in a run than that, if anything."""

_SEVERAL_STREAMS: Final = ("openvino", "ort", "tensorrt")


@dataclass(frozen=True)
class Engine:
    """An engine that works here: as it is asked for, and the device that it runs on."""

    asked: str
    device: str


def working_engines(backends: Sequence[str], device: str) -> tuple[list[Engine], list[Failure]]:
    """Try engines on a graph of two nodes, and return those that work, the most promising first, and why others do not.

    Args:
        backends: ``NAME[:KEY=VALUE,…]``; none: all that run exported files. Of those that are not asked for by name,
            nothing is said where they are not installed or do not have the device.
        device: ``auto``, ``cpu`` or ``cuda[:N]``.

    Raises:
        BenchError: if the options of one are none.
    """
    for one in backends:
        _ = Choice(Path(), one).options
    asked = list(dict.fromkeys(backends)) or installable_backends()
    names = list(dict.fromkeys(one.partition(":")[0] for one in asked))
    with ThreadPoolExecutor(available_cpus()) as workers:
        probes = dict(zip(names, workers.map(lambda name: probe(name, device), names), strict=True))
    engines, failures = [], []
    for one in asked:
        found = probes[one.partition(":")[0]]
        if found.works:
            engines.append(Engine(one, found.running_device))
        elif backends or found.fault_kind not in ("MissingExtraError", "DeviceError"):
            failures.append(Failure("every model", one, found.fault))
    return sorted(engines, key=lambda engine: _promise(engine.asked)), failures


def check_engines(engines: Sequence[Engine], failures: Sequence[Failure]) -> None:
    """Refuse to go on with no engine.

    Raises:
        BenchError: saying why none works.
    """
    if not engines:
        why = "; ".join(f"{failure.asked}: {failure.error}" for failure in failures) or "none is installed"
        raise BenchError(f"no engine runs models here ({why}); see what works with seg-check env")


def candidates(
    models: Sequence[Path], engines: Sequence[Engine], *, threads: int | None, for_rate: bool
) -> list[list[Choice]]:
    """Return what may be tried: of each model in each engine first the usual settings, then others of the same.

    Others are fewer threads, and where pictures a second are asked for, several runs at once.

    Args:
        models: exported files.
        engines: that work.
        threads: of each engine; None: all, half and one of the CPUs.
        for_rate: whether pictures a second are asked for.

    """
    tries = []
    for engine in engines:
        for model in models:
            choice = Choice(model, engine.asked, engine.device, threads=threads)
            tries.append(_variants(choice, for_rate=for_rate))
            if choice.backend in _OWN_PRECISION and ":" not in engine.asked:
                own = dataclasses.replace(choice, asked=f"{choice.asked}:precision=engine")
                tries.append(_variants(own, for_rate=for_rate))
    return tries


def in_batches(choice: Choice) -> list[Choice]:
    """Return settings with several pictures in a run, where the file leaves their number open and cuts no tiles.

    Raises:
        ModelError: if the file is missing or damaged.
    """
    card = card_of(choice.model)
    if "batch" not in card.dynamic or card.tile_overlap is not None:
        return []
    return [dataclasses.replace(choice, batch=_CPU_BATCH if choice.device == "cpu" else GPU_BATCH)]


def command_line(choice: Choice, engine: EngineInfo) -> str:
    """Return the ``seg-infer`` command that runs a model so; PICTURES stands for what is to be segmented."""
    options = _asked(choice, engine)
    words = ["seg-infer", str(choice.model), "PICTURES", "--backend", choice.backend, "--device", engine.device]
    for name in ("threads", "streams"):
        words += [f"--{name}", str(options.pop(name))]
    words += ["--batch", str(choice.batch)]
    for name, value in options.items():
        words += ["--set", f"{name}={str(value).lower() if isinstance(value, bool) else value}"]
    return shlex.join(words)


def python_lines(choice: Choice, engine: EngineInfo) -> str:
    """Return the lines of Python that load a model so."""
    options = ", ".join(f"{name}={_literal(value)}" for name, value in _asked(choice, engine).items())
    return "\n".join(
        (
            "from segship.runtime import Segmenter",
            "from segship.runtime.backends.options import EngineOptions",
            "",
            f"options = EngineOptions({options})",
            f"segmenter = Segmenter({_literal(str(choice.model))}, backend={_literal(choice.backend)}, "
            f"device={_literal(engine.device)}, options=options, batch={choice.batch})",
        )
    )


def _literal(value: object) -> str:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)  # in double quotes


def _asked(choice: Choice, engine: EngineInfo) -> dict[str, Any]:
    """Return the engine's options, with the threads that it took and not those that it would take elsewhere."""
    options = choice.options
    return {"threads": engine.threads, "streams": options.streams} | {
        name: value for name, value in options.asked().items() if name not in ("threads", "streams")
    }


def _variants(choice: Choice, *, for_rate: bool) -> list[Choice]:
    if choice.device != "cpu":
        return [choice, *(_with_streams(choice, 2) if for_rate else ())]
    cpus = available_cpus()
    counts = (choice.threads,) if choice.threads is not None else dict.fromkeys((cpus, max(1, cpus // 2), 1))
    found = [dataclasses.replace(choice, threads=count) for count in counts]
    return [*found, *(_with_streams(found[0], found[0].threads or cpus) if for_rate else ())]


def _with_streams(choice: Choice, streams: int) -> list[Choice]:
    if choice.backend not in _SEVERAL_STREAMS or streams == 1 or choice.options.streams > 1:
        return []
    separator = "," if ":" in choice.asked else ":"
    return [dataclasses.replace(choice, asked=f"{choice.asked}{separator}streams={streams}")]


def _promise(asked: str) -> int:
    name = asked.partition(":")[0]
    return _PROMISE.index(name) if name in _PROMISE else len(_PROMISE)
