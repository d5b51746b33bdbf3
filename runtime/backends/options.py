"""What a user may ask of an engine beside model and device; what an engine does not know, it refuses."""

import dataclasses
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Final, Literal, Self

from segship.runtime.backends.cpu_quota import available_cpus
from segship.runtime.errors import BackendError, StreamsError

GraphOptimization = Literal["none", "basic", "extended", "all"]


@dataclass(frozen=True)
class EngineOptions:
    """How an engine is to run a graph.

    Attributes:
        threads: that the engine may use on the CPU, for all streams together; None: the CPUs that this process may
            use.
        streams: runs of the graph at once, each on its share of the threads: more pictures a second, each of them
            later. What is more than this waits.
        precision: ``file``: calculate in what the file is written in. ``engine``: in what the engine takes for faster,
            and some labels flip: OpenVINO bfloat16 on CPUs that have it, TensorRT float16.
        graph_optimization: how far ONNX Runtime rewrites the graph; None: as far as it can.
        io_binding: keep input and output of ONNX Runtime in memory that is allocated once; None: on a GPU only.
        memory_arena: let ONNX Runtime keep freed memory of the CPU for itself; without, its peak is about half, and
            runs are slower.
        memory_limit_mb: of the GPU, for ONNX Runtime's CUDA memory, or for what TensorRT may use to build an engine.
        cuda_graph: record the work of a run on the GPU once and replay it. For graphs of fixed shapes that run on the
            GPU entirely.
        tf32: let the GPU round float32 to 10 bits of fraction before it multiplies: faster, and some labels flip.
        cache: folder for what OpenVINO or TensorRT compiled; None: OpenVINO keeps nothing, TensorRT uses the user's
            cache folder.
        engine: of OpenCV 5: ``new``, which runs on the CPU only, or ``classic``; None: the one that the device needs.

    Raises:
        BackendError: if a number is out of its range.
    """

    threads: int | None = None
    streams: int = 1
    precision: Literal["file", "engine"] = "file"
    graph_optimization: GraphOptimization | None = None
    io_binding: bool | None = None
    memory_arena: bool = True
    memory_limit_mb: int | None = None
    cuda_graph: bool = False
    tf32: bool = False
    cache: str | None = None
    engine: Literal["new", "classic"] | None = None

    def __post_init__(self) -> None:
        for name in ("threads", "streams", "memory_limit_mb"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise BackendError(f"{name} is {value}; expected 1 or more")
        if self.cache == "":
            raise BackendError("cache is empty; expected the path of a folder")

    @property
    def cpu_threads(self) -> int:
        """How many threads the engine may use on the CPU."""
        return self.threads or available_cpus()

    def asked(self) -> dict[str, Any]:
        """Return what differs from the defaults, by name."""
        return {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if getattr(self, field.name) != field.default
        }

    def allow(self, backend: str, known: Collection[str]) -> Self:
        """Return these options, if nothing but what is ``known`` was asked for.

        Raises:
            BackendError: if an option was that ``backend`` does not have, so that it would be ignored.
        """
        if others := [name for name in self.asked() if name not in known]:
            raise BackendError(
                f"the {backend} backend has no option {others[0]}; leave it out (it has {', '.join(sorted(known))})"
            )
        return self

    def one_stream(self, backend: str, reason: str) -> Self:
        """Return these options, if they ask for a single stream.

        Raises:
            StreamsError: giving the reason why ``backend`` runs no more than one.
        """
        if self.streams > 1:
            raise StreamsError(
                f"{self.streams} streams were asked for, but the {backend} backend runs one at a time: {reason}; "
                "use --streams 1, or --backend ort"
            )
        return self


DEFAULT_OPTIONS: Final = EngineOptions()
