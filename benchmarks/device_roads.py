"""The bare network on a device, its input there already: ONNX Runtime and PyTorch, without what the runtime adds."""

import time
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from segship.benchmarks.engine_choice import Choice
from segship.runtime.backends import EngineInfo
from segship.runtime.backends.common import import_onnxruntime
from segship.runtime.backends.gpus import cuda_number
from segship.runtime.backends.ort import cuda_options
from segship.runtime.backends.ort_session import CPU, CUDA, session_options
from segship.runtime.card import ModelCard
from segship.runtime.errors import BackendError, one_line, require

RESIDENT: Final = "resident"
"""The network with its input and output in the device's memory: no transfer. Beside the stages of a record."""

TorchPrecision = Literal["fp32", "tf32", "fp16", "bf16"]


class ResidentRoad:
    """ONNX Runtime on input that lies on the device, its output left there.

    Args:
        choice: model, options and device; of the backend ``ort``.
        card: of the model.
        batch: what the graph takes.

    Raises:
        BackendError: if ONNX Runtime cannot run it there.
    """

    def __init__(self, choice: Choice, card: ModelCard, batch: NDArray[Any]) -> None:
        is_cpu = choice.device == "cpu"
        ort = import_onnxruntime("cpu" if is_cpu else "gpu")
        number = 0 if is_cpu else cuda_number(choice.device, choice.backend, "cuda[:N]")
        providers = [CPU] if is_cpu else [(CUDA, cuda_options(choice.options, number)), CPU]
        kind = "cpu" if is_cpu else "cuda"
        asked = session_options(ort, choice.options)
        try:
            self._session = ort.InferenceSession(str(choice.model), asked, providers=providers, enable_fallback=0)
            self._binding = self._session.io_binding()
            self._input = ort.OrtValue.ortvalue_from_numpy(batch, kind, number)
            self._binding.bind_ortvalue_input(card.input_name, self._input)
            self._binding.bind_output(card.output_name, kind, number)
        except Exception as error:  # ONNX Runtime's exceptions have no base class but this
            raise BackendError(f"ONNX Runtime cannot run it ({one_line(error)})") from error
        if self._session.get_providers()[0] != (CPU if is_cpu else CUDA):
            raise BackendError(f"ONNX Runtime runs it on {self._session.get_providers()[0]}, not on {choice.device}")

    def __call__(self) -> dict[str, int]:
        """Run once; return the nanoseconds of the run, which ends when the device is done.

        Raises:
            BackendError: if ONNX Runtime fails.
        """
        start = time.perf_counter_ns()
        try:
            self._session.run_with_iobinding(self._binding)
            self._binding.synchronize_outputs()
        except Exception as error:  # likewise
            raise BackendError(f"ONNX Runtime failed: {one_line(error)}") from error
        return {RESIDENT: time.perf_counter_ns() - start}

    def close(self) -> None:
        """Free what it holds."""
        del self._binding, self._input, self._session


class TorchRoad:
    """PyTorch as one would deploy it: channels last, no gradients, eager or compiled.

    Args:
        checkpoint: of the network.
        batch: (N, C, H, W) float32.
        device: ``cpu`` or ``cuda[:N]``.
        precision: float32; of TensorFloat-32 where the device multiplies; or autocast to 16 bits.
        compiled: by ``torch.compile``, for this shape alone; the first run compiles.

    Raises:
        MissingExtraError: if PyTorch is not installed.
        CheckpointError: if the checkpoint cannot be read.
        BackendError: if PyTorch cannot put it on the device.
    """

    def __init__(
        self, checkpoint: Path, batch: NDArray[np.float32], device: str, precision: TorchPrecision, *, compiled: bool
    ) -> None:
        torch = require("torch", extra="train", purpose="PyTorch beside the engines")

        from segship.training.checkpoint import load_checkpoint

        self._torch, self._precision, self._is_compiled = torch, precision, compiled
        network: Any = load_checkpoint(checkpoint)[0].eval()
        try:
            self._device = torch.device(device)
            network = network.to(self._device, memory_format=torch.channels_last)
            if compiled:
                torch._dynamo.reset()  # it remembers other batches, and would compile for any of them
                network = torch.compile(network, mode="max-autotune-no-cudagraphs", dynamic=False)
            self._network = network
            self._batch = torch.from_numpy(batch).to(memory_format=torch.channels_last)
            if self._device.type == "cuda":
                self._batch = self._batch.pin_memory()
        except Exception as error:  # without CUDA it is an AssertionError, without memory a RuntimeError
            raise BackendError(f"PyTorch cannot put it on {device}: {one_line(error)}") from error
        self.info = EngineInfo(
            "torch",
            f"PyTorch {torch.__version__}, {'compiled' if compiled else 'eager'}",
            str(self._device),
            precision,
            torch.get_num_threads(),
        )

    def __call__(self) -> dict[str, int]:
        """Run once; return nanoseconds: of both transfers, and of the network between them.

        Raises:
            BackendError: if PyTorch fails, or cannot compile the network.
        """
        torch = self._torch
        is_16_bit = self._precision in ("fp16", "bf16")
        narrow = torch.float16 if self._precision == "fp16" else torch.bfloat16
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = self._precision == "tf32"
        try:
            with torch.inference_mode(), torch.autocast(self._device.type, dtype=narrow, enabled=is_16_bit):
                start = time.perf_counter_ns()
                given = self._batch.to(self._device, non_blocking=True)
                self._wait()
                begun = time.perf_counter_ns()
                logits = self._network(given)[0]
                self._wait()
                done = time.perf_counter_ns()
                logits.float().cpu()
                end = time.perf_counter_ns()
        except Exception as error:  # the compiler's errors have no common base class
            raise BackendError(f"PyTorch failed: {one_line(error)}") from error
        return {"transfer": begun - start + end - done, "network": done - begun, RESIDENT: done - begun}

    def close(self) -> None:
        """Free what it holds, for other libraries, too."""
        del self._network, self._batch
        if self._is_compiled:
            self._torch._dynamo.reset()
        if self._device.type == "cuda":
            self._torch.cuda.empty_cache()

    def _wait(self) -> None:
        if self._device.type == "cuda":
            self._torch.cuda.synchronize(self._device)
