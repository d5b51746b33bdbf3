"""What a run of ``seg-bench`` is to measure: its options, and the models in engines that they come to."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from segship.benchmarks.engine_choice import Choice, check_checkpoint
from segship.benchmarks.record import BenchError
from segship.runtime.backends.cpu_quota import available_cpus
from segship.runtime.errors import SegshipError

TORCH: Final = "torch"


@dataclass(frozen=True)
class BenchOptions:
    """What is measured, and how.

    Attributes:
        models: exported files.
        backends: engines, ``NAME[:KEY=VALUE,…]``; ``torch`` runs ``checkpoint``.
        device: ``auto``, ``cpu`` or ``cuda[:N]``.
        batches: pictures in a run.
        threads: of each engine; None: as many as it would take by itself.
        checkpoint: that one of the models was exported from.
        data: dataset whose validation part accuracy is measured on, ``KIND:DIR``; None: none is.
        limit: of its pictures, spread evenly; None: all.
        picture: file that single runs are of; None: the first one of ``data``, otherwise noise of the network's size.
        quick: measure less.
        profile: also tell the operators' shares, of ONNX Runtime.
        concurrency: most runs of the network at once; None: the CPUs that this process may use.
        command: as it was typed.
    """

    models: tuple[Path, ...]
    backends: tuple[str, ...]
    device: str = "auto"
    batches: tuple[int, ...] = (1,)
    threads: int | None = None
    checkpoint: Path | None = None
    data: str | None = None
    limit: int | None = None
    picture: Path | None = None
    quick: bool = False
    profile: bool = False
    concurrency: int | None = None
    command: str = ""

    @property
    def engine_of_update(self) -> str | None:
        """The engine in which an old and a new model are compared; None unless they are two, with data."""
        if len(self.models) != 2 or self.data is None:
            return None
        return next((asked for asked in self.backends if asked.partition(":")[0] != TORCH), None)

    @property
    def concurrencies(self) -> tuple[int, ...]:
        """1, 2, 4 … and the most."""
        most = self.concurrency or available_cpus()
        return (*(1 << power for power in range((most - 1).bit_length())), most)


def choices(options: BenchOptions) -> list[tuple[Choice, Path]]:
    """Return what is measured, in the order asked for, each with its ONNX file.

    Raises:
        BenchError: if PyTorch is asked for without a checkpoint, or with one of none of the models.
    """
    found: list[tuple[Choice, Path]] = []
    asks_torch = any(asked.partition(":")[0] == TORCH for asked in options.backends)
    graph = _graph_of(options) if asks_torch else None
    for model in options.models:
        for asked in options.backends:
            for batch in options.batches:
                choice = Choice(model, asked, options.device, batch, options.threads)
                if choice.backend != TORCH:
                    found.append((choice, model))
                elif model == graph and options.checkpoint is not None:
                    found.append((dataclasses.replace(choice, model=options.checkpoint), model))
    return found


def _graph_of(options: BenchOptions) -> Path:
    """Return the first of the models that was exported from the checkpoint."""
    if options.checkpoint is None:
        raise BenchError(
            "torch runs checkpoints, not exported files; name the models' by --checkpoint FILE.safetensors"
        )
    refusals = []
    for model in options.models:
        try:
            check_checkpoint(model, options.checkpoint)
        except SegshipError as error:
            refusals.append(error)
            continue
        return model
    raise refusals[0]
