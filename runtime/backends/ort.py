"""ONNX Runtime, on the CPU or through CUDA."""

import contextlib
import io
import re
from pathlib import Path
from typing import Any, Final

from numpy.typing import NDArray

from segship.runtime.backends import EngineInfo
from segship.runtime.backends.common import import_onnxruntime
from segship.runtime.backends.gpus import cuda_number, has_nvidia_driver
from segship.runtime.backends.options import DEFAULT_OPTIONS, EngineOptions
from segship.runtime.backends.ort_session import CPU, CUDA, OrtSession, be_quiet, threads_of
from segship.runtime.card import ModelCard
from segship.runtime.errors import BackendError, DeviceError, ModelError
from segship.runtime.model_file import check_fits

INSTALL_GPU: Final = 'pip uninstall -y onnxruntime; pip install "segship[gpu]"'
"""The builds for CPU and GPU are one package under two names, so one must go before the other comes."""

_KNOWN: Final = frozenset(
    {
        *("threads", "streams", "graph_optimization", "io_binding", "memory_arena"),
        *("memory_limit_mb", "cuda_graph", "tf32"),
    }
)
_GPU_ONLY: Final = ("memory_limit_mb", "cuda_graph", "tf32")


class OrtBackend:
    """Runs an ONNX file with ONNX Runtime.

    Args:
        model: the ``.onnx`` file.
        card: the model's.
        device: ``auto`` (CUDA where it really works, else the CPU), ``cpu`` or ``cuda[:N]``.
        options: without ``precision``, ``cache`` and ``engine``, which it has not.
    """

    def __init__(self, model: Path, card: ModelCard, device: str, options: EngineOptions = DEFAULT_OPTIONS) -> None:
        options.allow("ort", _KNOWN)
        _check_cuda_graph(card, options)
        check_fits(model, card)
        number = 0 if device in ("auto", "cpu") else cuda_number(device, "ort", "auto, cpu or cuda[:N]")
        ort = import_onnxruntime("cpu" if device in ("auto", "cpu") else "gpu")
        session, note = None, ""
        if device == "auto":
            session, note = _cuda_if_it_works(ort, model, card, options)
        elif device != "cpu":
            session = open_on_cuda(ort, model, card, options, number)
        if session is None:
            _refuse_on_cpu(options, note)
            binds = bool(options.io_binding)
            self._session = OrtSession(ort, model, card, options, [CPU], binds=binds)
        else:
            self._session = session
        precision = "tf32" if session and options.tf32 and card.precision == "fp32" else card.precision
        self._info = EngineInfo(
            "ort",
            f"ONNX Runtime {ort.__version__}",
            f"cuda:{number}" if session else "cpu",
            precision,
            threads_of(options)[1],
            options.streams,
            self._session.nodes,
            note,
        )

    @property
    def info(self) -> EngineInfo:
        """What really runs the graph."""
        return self._info

    @property
    def transfer_ns(self) -> int | None:
        """Nanoseconds that copies to and from the GPU took in all runs so far; None where they cannot be told."""
        return self._session.transfer_ns

    def run(self, batch: NDArray[Any]) -> NDArray[Any]:
        """Map the graph's input to its output, both as the card describes them; from any thread."""
        return self._session.run(batch)

    def close(self) -> None:
        """Free the session."""
        self._session.close()


def open_on_cuda(ort: Any, model: Path, card: ModelCard, options: EngineOptions, number: int) -> OrtSession:
    """Open a session that runs on a GPU.

    Raises:
        DeviceError: if it does not, for whatever reason.
    """
    if CUDA not in ort.get_available_providers():
        raise DeviceError(
            f"cuda was asked for, but this ONNX Runtime ({ort.__version__}) is built for the CPU; "
            f"use --device cpu, or install the other build: {INSTALL_GPU}"
        )
    if not has_nvidia_driver():
        raise DeviceError("cuda was asked for, but this machine has no NVIDIA driver; use --device cpu or auto")
    lacks = load_cuda_libraries(ort)
    try:
        session = OrtSession(
            ort,
            model,
            card,
            options,
            [(CUDA, cuda_options(options, number)), CPU],
            gpu=number,
            binds=options.io_binding is not False,
        )
        cause = f"it lacks {', '.join(lacks)}" if lacks else "it took the CPU"
    except ModelError as error:
        session, cause = None, str(error)
    if session is None or session.providers[0] != CUDA:
        raise DeviceError(
            f"cuda:{number} was asked for, but ONNX Runtime {ort.__version__} could not start it ({cause}); "
            'install its CUDA libraries with pip install "segship[gpu]", check nvidia-smi, or use --device cpu'
        )
    return session


def load_cuda_libraries(ort: Any) -> list[str]:
    """Load the CUDA and cuDNN that pip installed; return the names of the libraries that are nowhere to be found."""
    be_quiet(ort)
    if not hasattr(ort, "preload_dlls"):
        return []
    with contextlib.redirect_stdout(io.StringIO()) as said:  # where a JSON document may be expected
        ort.preload_dlls()
    return re.findall(r"Failed to load (\S+):", said.getvalue())


def cuda_options(options: EngineOptions, number: int) -> dict[str, str]:
    """Return the options of ONNX Runtime's CUDA provider."""
    asked = {"device_id": str(number), "use_tf32": str(int(options.tf32))}
    if options.memory_limit_mb is not None:
        # By itself it takes memory in powers of two, which leaves much of what is allowed out of reach.
        asked |= {"gpu_mem_limit": str(options.memory_limit_mb << 20), "arena_extend_strategy": "kSameAsRequested"}
    if options.cuda_graph:
        asked["enable_cuda_graph"] = "1"
    return asked


def _cuda_if_it_works(ort: Any, model: Path, card: ModelCard, options: EngineOptions) -> tuple[OrtSession | None, str]:
    """Return a session on the first GPU; where that does not work, None and why, if one would have expected it."""
    if CUDA not in ort.get_available_providers():
        return None, ""
    try:
        return open_on_cuda(ort, model, card, options, 0), ""
    except DeviceError as error:
        return None, str(error).partition("; ")[0].replace("was asked for, but", "is not used:")


def _check_cuda_graph(card: ModelCard, options: EngineOptions) -> None:
    if not options.cuda_graph:
        return
    if card.dynamic:
        raise BackendError(
            f"cuda_graph was asked for, but this model leaves its {' and '.join(card.dynamic)} open and a recorded run "
            "has one shape; leave cuda_graph out, or export without --dynamic"
        )
    if options.io_binding is False:
        raise BackendError("cuda_graph was asked for without io_binding, but it replays on bound memory; allow both")
    options.one_stream("ort", "a recorded CUDA graph")


def _refuse_on_cpu(options: EngineOptions, note: str) -> None:
    if asked := [name for name in options.asked() if name in _GPU_ONLY]:
        raise DeviceError(
            f"{asked[0]} was asked for, which is for GPUs, and the network runs on the CPU"
            f"{f' ({note})' if note else ''}; leave it out, or use --device cuda"
        )
