"""What is asked of a model on this machine, and what was found out of one that was tried."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from segship.runtime.backends import EngineInfo


@dataclass(frozen=True)
class WishKind:
    """A kind of wish.

    Attributes:
        figure: field of :class:`Tried` that it is about.
        text: what it is called.
        unit: of it.
        form: how values of it are written.
        is_upper: it is the most that the figure may be, not the least.
    """

    figure: str
    text: str
    unit: str
    form: str
    is_upper: bool

    def said(self, value: float, sign: str = "") -> str:
        """Return ``p95 17.2 ms``, with a sign ``p95 ≤ 20 ms``."""
        between = f" {sign} " if sign else " "
        return f"{self.text}{between}{value:{self.form}} {self.unit}".rstrip()


WISHES: Final = {
    "max_latency_ms": WishKind("p95_ms", "p95", "ms", ".4g", is_upper=True),
    "min_miou": WishKind("miou", "mIoU", "", ".4g", is_upper=False),
    "min_images_per_s": WishKind("images_per_s", "throughput", "images/s", ".4g", is_upper=False),
    "max_memory_mb": WishKind("memory_mb", "peak memory", "MB", ".4g", is_upper=True),
}


@dataclass(frozen=True)
class Wish:
    """What is asked for; None: nothing is.

    Attributes:
        max_latency_ms: of a picture, from a file's bytes to its mask's; of the 95th percentile.
        min_miou: on the data, 0…1.
        min_images_per_s: decoded pictures to labels, as many at once as the settings say.
        max_memory_mb: peak resident memory of a process that runs it, in 10⁶ bytes.
    """

    max_latency_ms: float | None
    min_miou: float | None
    min_images_per_s: float | None = None
    max_memory_mb: float | None = None

    @property
    def only_accuracy(self) -> bool:
        """Whether nothing but a mIoU is asked for."""
        return (self.max_latency_ms, self.min_images_per_s, self.max_memory_mb) == (None, None, None)

    def __str__(self) -> str:
        asked = [(kind, getattr(self, name)) for name, kind in WISHES.items()]
        parts = [kind.said(value, "≤" if kind.is_upper else "≥") for kind, value in asked if value is not None]
        return ", ".join(parts) or "nothing but the fastest"


@dataclass(frozen=True)
class Tried:
    """What ran, and how well.

    Attributes:
        model: the file.
        asked: the engine with its options, NAME[:KEY=VALUE,…].
        batch: pictures in a run.
        engine: what really ran.
        certificate: what the file's certificate says of this engine, in words; None: it does not cover it.
        runs: that the percentiles are of.
        p50_ms: median time of a picture.
        p95_ms: 95th percentile; of fewer than 20 runs the slowest.
        is_screened: it was left out after a few runs.
        miou: 0…1; None: not measured.
        images_per_s: likewise.
        memory_mb: likewise.
        lacks: which wishes it does not fulfil, or why that is not known.
    """

    model: str
    asked: str
    batch: int
    engine: EngineInfo
    certificate: str | None
    runs: int
    p50_ms: float
    p95_ms: float
    is_screened: bool = True
    miou: float | None = None
    images_per_s: float | None = None
    memory_mb: float | None = None
    lacks: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """File, engine, precision and settings."""
        threads = f"{self.engine.threads} thread{'s' if self.engine.threads > 1 else ''}"
        batch = f", batch {self.batch}" if self.batch > 1 else ""
        return f"{Path(self.model).name}, {self.asked}, {self.engine.precision}, {threads}{batch}"

    def figure(self, wish: str) -> str:
        """Return the figure that a wish is about, with its unit."""
        return WISHES[wish].said(getattr(self, WISHES[wish].figure))


@dataclass(frozen=True)
class Untried:
    """What was left out."""

    name: str
    why: str
