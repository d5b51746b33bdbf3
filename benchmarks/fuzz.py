"""Does anything but a clean error come of damaged files? Mutated pictures, models and cards, by the thousand.

    python -m segship.benchmarks.fuzz --images 10000 --models 2000 --seed 0

Each mutant is read in a worker process under a limit of memory and time. A picture comes in by its path, as bytes, on
stdin and, if it begins as a TIFF, row by row; of a model everything is read that segship reads, and a picture goes
through an engine, which is isolated in a process of its own. Allowed is success, or an error of segship's own, of one
line. One mutant in ``--cli-every`` also goes through ``seg-infer`` as a process, which must end with 0, 1 or 3 and
without a traceback.

Anything else is a finding: another exception, a crash of the worker, too much memory or time. It is saved, with the
mutant, in the folder of findings, and makes the exit status 1. An isolated engine that crashed is no finding, but
counted. The same seed gives the same mutants, whatever their number. POSIX systems only.
"""

import collections
import dataclasses
import importlib.util
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click
from rich.console import Console
from rich.progress import Progress

from segship.benchmarks.fuzz_mutations import mutated_bytes, mutated_model
from segship.benchmarks.fuzz_seeds import model_seeds, picture_seeds
from segship.runtime.backends.child_process import ChildDiedError, ChildProcess
from segship.runtime.console import run
from segship.runtime.errors import EXIT_ERROR, EXIT_OK, EXIT_SKIPPED
from segship.runtime.files import write_text

_WORKER: Final = "segship.benchmarks.fuzz_worker"
_ENGINES: Final = {"ort": "onnxruntime", "opencv": "cv2", "openvino": "openvino"}
_FORMS: Final = (
    {"channels": 3, "depth": "uint8", "convert": ["depth", "alpha"]},
    {"channels": 1, "depth": "uint8", "convert": ["depth", "alpha", "grey"]},
    {"channels": 3, "depth": "uint16", "convert": []},
)
_FAULTS: Final = ("Traceback", "a fault in segship")
_CLI: Final = """
import resource, sys
size = int(sys.argv.pop(1)) << 20
resource.setrlimit(resource.RLIMIT_DATA, (size, size))
from segship.runtime.cli import main
main()
"""


@dataclass(frozen=True)
class Mutant:
    """A damaged file.

    Attributes:
        kind: ``image`` or ``model``.
        number: among those of its kind, from 0.
        name: of the file, which begins with that of the seed it was made from.
        data: its content.
        backend: engine for a model.
        form: what ``read_image`` is to make of a picture.
    """

    kind: str
    number: int
    name: str
    data: bytes
    backend: str
    form: dict[str, Any]


class Tally:
    """What has come of the mutants so far; several threads add to it.

    Args:
        folder: that findings are saved in.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.counts: collections.Counter[tuple[str, str]] = collections.Counter()
        self.findings: list[str] = []
        self._lock = threading.Lock()

    def add(self, mutant: Mutant, answer: dict[str, Any]) -> None:
        """Count an answer of the worker."""
        self.count(mutant, answer["outcome"])
        for how in answer.get("contained", []):
            self.count(mutant, f"{mutant.backend} {how}, contained")
        if answer.get("error"):
            self.count(mutant, f"refused by {answer['error']}")
        if answer["outcome"] == "finding":
            self.find(mutant, answer["what"], answer["traceback"])

    def count(self, mutant: Mutant, what: str) -> None:
        """Count one more of what may happen."""
        with self._lock:
            self.counts[mutant.kind, what] += 1

    def find(self, mutant: Mutant, what: str, detail: str) -> None:
        """Save a finding with its mutant."""
        place = self.folder / f"{mutant.kind}-{mutant.number:05}-{mutant.name}"
        with self._lock:
            self.folder.mkdir(parents=True, exist_ok=True)
            place.write_bytes(mutant.data)
            given = dataclasses.asdict(dataclasses.replace(mutant, data=b""))
            write_text(place.with_name(place.name + ".txt"), f"{what}\n{given}\n\n{detail}\n")
            self.findings.append(f"{what}: {place}")


@click.command(context_settings={"show_default": True})
@click.option("--images", type=click.IntRange(0), default=10_000, help="Number of mutated pictures.")
@click.option("--models", type=click.IntRange(0), default=2_000, help="Number of mutated models and cards.")
@click.option("--seed", type=int, default=0, help="Of the mutations.")
@click.option("--seconds", type=click.FloatRange(0.1), help="Begin nothing after this time.  [default: no limit]")
@click.option("--workers", type=click.IntRange(1), default=1, help="Processes at once.")
@click.option("--backend", "backends", multiple=True, help="Engine for models; repeatable.  [default: all installed]")
@click.option("--memory-mb", type=click.IntRange(256), default=3072, help="Limit of each process.")
@click.option("--time-limit", "time_limit_s", type=click.FloatRange(1), default=20.0, help="Seconds for one mutant.")
@click.option("--cli-every", type=click.IntRange(0), default=200, help="Mutants to one that seg-infer gets; 0: none.")
@click.option("--findings", type=click.Path(path_type=Path), default=Path("findings"), help="Folder for findings.")
def fuzz(
    *,
    images: int,
    models: int,
    seed: int,
    seconds: float | None,
    workers: int,
    backends: tuple[str, ...],
    memory_mb: int,
    time_limit_s: float,
    cli_every: int,
    findings: Path,
) -> int:
    """Read damaged files and report what should not come of them."""
    engines = backends or tuple(name for name, module in _ENGINES.items() if importlib.util.find_spec(module))
    mutants = _mutants(images, models, seed, engines)
    end = time.monotonic() + (seconds or float("inf"))
    tally, lock = Tally(findings), threading.Lock()
    limits = {"memory_mb": memory_mb, "time_limit_s": time_limit_s}
    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task("mutants", total=images + models)

        def work() -> None:
            with tempfile.TemporaryDirectory() as folder, _Reader(limits) as reader:
                while time.monotonic() < end:
                    with lock:
                        if (mutant := next(mutants, None)) is None:
                            return
                    (path := Path(folder) / mutant.name).write_bytes(mutant.data)
                    tally.add(mutant, reader.read(mutant, path))
                    if cli_every and mutant.number % cli_every == 0:
                        _through_the_command(mutant, path, limits, tally)
                    path.unlink()
                    progress.advance(bar)

        threads = [threading.Thread(target=work) for _ in range(workers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for (kind, what), count in sorted(tally.counts.items()):
        click.echo(f"{kind}s {what}: {count}")
    for finding in sorted(tally.findings):
        click.echo(f"FINDING {finding}")
    click.echo(f"{len(tally.findings)} findings")
    return EXIT_ERROR if tally.findings else EXIT_OK


def _mutants(images: int, models: int, seed: int, engines: tuple[str, ...]) -> Iterator[Mutant]:
    """Make the mutants, pictures first; each from a generator of its own, so that one can be made without the rest."""
    pictures, nets = picture_seeds(), model_seeds()
    for kind, count, seeds in (("image", images, pictures), ("model", models, nets)):
        others = list(seeds.values())
        for number in range(count):
            rng = random.Random(f"{seed} {kind} {number}")  # noqa: S311  # the same each time is what is wanted
            name = rng.choice(list(seeds))
            backend, form = rng.choice(engines), rng.choice(_FORMS)
            mutate = mutated_bytes if kind == "image" else mutated_model
            data = mutate(seeds[name], others, rng)
            yield Mutant(kind, number, name if kind == "image" else f"{name}.onnx", data, backend, form)


class _Reader:
    """A worker process, replaced where it dies."""

    def __init__(self, limits: dict[str, Any]) -> None:
        self._limits = limits
        self._worker: ChildProcess | None = None

    def __enter__(self) -> "_Reader":
        return self

    def __exit__(self, *_: object) -> None:
        if self._worker:
            self._worker.end()

    def read(self, mutant: Mutant, path: Path) -> dict[str, Any]:
        """Have a mutant read; return the worker's answer, or a finding if there is none."""
        question = {"kind": mutant.kind, "path": str(path), "form": mutant.form, "backend": mutant.backend}
        patience_s = 3 * self._limits["time_limit_s"]  # an isolated engine has a time limit of its own, twice
        self._worker = self._worker or ChildProcess(_WORKER)
        try:
            answer, _ = self._worker.ask(question | self._limits, None, patience_s)
        except ChildDiedError as death:
            self._worker.end()
            self._worker = None
            return {"outcome": "finding", "what": f"the worker {death.how}", "traceback": death.last_words}
        return answer


def _through_the_command(mutant: Mutant, path: Path, limits: dict[str, Any], tally: Tally) -> None:
    """Give a mutant to ``seg-infer``, beside a whole file of the other kind."""
    with tempfile.TemporaryDirectory() as folder:
        model, picture = path, path
        if mutant.kind == "image":
            (model := Path(folder) / "whole.onnx").write_bytes(model_seeds()["fixed"])
        else:
            (picture := Path(folder) / "whole.png").write_bytes(picture_seeds()["rgb.png"])
        isolate = ["--isolate"] if mutant.kind == "model" else []
        options = ["--backend", mutant.backend, "--device", "cpu", "--out", folder, *isolate, "-q"]
        program = [sys.executable, "-c", _CLI, str(limits["memory_mb"])]
        try:
            done = subprocess.run(  # noqa: S603  # our own command
                [*program, str(model), str(picture), *options],
                capture_output=True,
                timeout=3 * limits["time_limit_s"],
                check=False,
            )
        except subprocess.TimeoutExpired:
            tally.find(mutant, "seg-infer did not end in time", "")
            return
        said = done.stderr.decode(errors="replace")
        if done.returncode not in (EXIT_OK, EXIT_ERROR, EXIT_SKIPPED) or any(word in said for word in _FAULTS):
            tally.find(mutant, f"seg-infer ended with {done.returncode}", said)
        else:
            tally.count(mutant, f"seg-infer ended with {done.returncode}")


if __name__ == "__main__":
    run(fuzz)
