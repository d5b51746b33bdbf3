"""What is ONNX Runtime's alone: its options, bound memory, and where nodes run."""

import dataclasses
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from segship.runtime.backends.common import import_onnxruntime
from segship.runtime.backends.cpu_quota import available_cpus
from segship.runtime.backends.options import EngineOptions
from segship.runtime.backends.ort import OrtBackend, cuda_options
from segship.runtime.backends.ort_binding import BoundRuns
from segship.runtime.backends.ort_session import CPU, OrtSession, threads_of
from segship.runtime.card import ModelCard
from segship.runtime.errors import BackendError, DeviceError, StreamsError
from segship.runtime.model_file import read_card

WITHOUT_GPU = pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="this machine has a GPU")
BATCHES = np.random.default_rng(4).standard_normal((4, 1, 3, 48, 64), np.float32)


def loaded(model: Path, **options: object) -> OrtBackend:
    return OrtBackend(model, read_card(model), "cpu", dataclasses.replace(EngineOptions(), **options))  # type: ignore[arg-type]


@pytest.fixture
def expected(tiny_model: Path) -> list[NDArray[np.float32]]:
    backend = loaded(tiny_model, threads=1)
    outputs = [backend.run(batch) for batch in BATCHES]
    backend.close()
    return outputs


@pytest.mark.parametrize(
    "options",
    [
        {"io_binding": True},
        {"io_binding": True, "streams": 2, "threads": 2},
        {"memory_arena": False},
        {"graph_optimization": "none"},
        {"graph_optimization": "basic"},
        {"graph_optimization": "extended"},
        {"graph_optimization": "all"},
        {"streams": 2, "threads": 3},
    ],
    ids=str,
)
def test_no_option_of_the_cpu_changes_what_is_computed(
    tiny_model: Path, options: dict[str, object], expected: list[NDArray[np.float32]]
) -> None:
    backend = loaded(tiny_model, **options)
    for batch, output in zip(BATCHES, expected, strict=True):
        np.testing.assert_allclose(backend.run(batch), output, rtol=1e-4, atol=1e-5)
    assert backend.info.streams == options.get("streams", 1)
    backend.close()


def test_bound_memory_follows_open_shapes_and_keeps_no_output(tiny_model: Path, tmp_path: Path) -> None:
    """Over one set of memory; the graph is opened up by hand."""
    proto = onnx.load(tiny_model)
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "N"
    path = tmp_path / "open.onnx"
    onnx.save(proto, path)
    card = dataclasses.replace(read_card(tiny_model), dynamic=("batch",))
    bound = OrtBackend(path, card, "cpu", EngineOptions(io_binding=True))
    plain = OrtBackend(path, card, "cpu")
    kept = []
    for count in (1, 3, 1, 2, 3):
        batch = np.ascontiguousarray(BATCHES[:count, 0])
        output = bound.run(batch)
        kept.append((output, plain.run(batch)))
    for output, wanted in kept:
        np.testing.assert_array_equal(output, wanted)
    bound.close()
    plain.close()


def test_bound_memory_takes_a_batch_of_any_order_and_read_only(tiny_model: Path) -> None:
    backend = loaded(tiny_model, io_binding=True)
    wanted = backend.run(BATCHES[0])
    turned = np.asfortranarray(BATCHES[0])
    turned.flags.writeable = False
    np.testing.assert_array_equal(backend.run(turned), wanted)
    backend.close()


def test_copies_into_bound_memory_are_timed_and_told_of_a_gpu_only(tiny_model: Path) -> None:
    card, asked = read_card(tiny_model), EngineOptions(threads=1)
    ort = import_onnxruntime("cpu")
    session = OrtSession(ort, tiny_model, card, asked, [CPU], binds=True)
    bound = BoundRuns(ort, session._session, card, ("cpu", 0), 2)
    told = [bound.transfer_ns]
    for batch in BATCHES[:3]:
        start = time.perf_counter_ns()
        bound.run(batch)
        told.append(bound.transfer_ns)
        assert 0 < told[-1] - told[-2] < time.perf_counter_ns() - start
    assert told[0] == 0
    assert session.transfer_ns is None
    session.close()


def test_more_threads_than_sets_of_bound_memory_wait_for_each_other(tiny_model: Path) -> None:
    backend = loaded(tiny_model, io_binding=True, streams=2, threads=2)
    wanted = [backend.run(batch) for batch in BATCHES]
    wrong: list[int] = []

    def work(number: int) -> None:
        wrong.extend(number for _ in range(200) if (backend.run(BATCHES[number]) != wanted[number]).any())

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    backend.close()


def test_the_nodes_of_the_graph_are_counted_by_provider(tiny_model: Path) -> None:
    backend = loaded(tiny_model, graph_optimization="none")
    assert backend.info.providers == (("CPUExecutionProvider", len(onnx.load(tiny_model).graph.node)),)
    backend.close()


@pytest.mark.parametrize(
    ("threads", "streams", "each", "together"), [(1, 1, 1, 1), (8, 1, 8, 8), (8, 2, 7, 8), (4, 4, 1, 4)]
)
def test_all_streams_together_use_the_threads_that_were_asked_for(
    threads: int, streams: int, each: int, together: int
) -> None:
    assert threads_of(EngineOptions(threads=threads, streams=streams)) == (each, together)


def test_more_streams_than_threads_are_refused_where_threads_were_asked_for(tiny_model: Path) -> None:
    with pytest.raises(StreamsError, match=r"4 streams were asked for, and 1 threads; .* ask for fewer streams"):
        loaded(tiny_model, threads=1, streams=4)
    streams = available_cpus() + 1
    backend = loaded(tiny_model, streams=streams)
    assert (backend.info.threads, backend.info.streams) == (streams, streams)
    backend.close()


def test_the_info_names_threads_and_streams(tiny_model: Path) -> None:
    backend = loaded(tiny_model, threads=3, streams=2)
    assert (backend.info.threads, backend.info.streams) == (3, 2)
    assert str(backend.info).endswith("on cpu in fp32, 3 CPU threads, 2 streams")
    backend.close()


@WITHOUT_GPU
@pytest.mark.parametrize("device", ["cpu", "auto"])
@pytest.mark.parametrize(("name", "value"), [("memory_limit_mb", 100), ("cuda_graph", True), ("tf32", True)])
def test_what_is_for_gpus_is_refused_on_the_cpu(tiny_model: Path, device: str, name: str, value: object) -> None:
    options = dataclasses.replace(EngineOptions(), **{name: value})
    with pytest.raises(DeviceError, match=rf"{name} was asked for, which is for GPUs, and the network runs on the CPU"):
        OrtBackend(tiny_model, read_card(tiny_model), device, options)


def test_a_cuda_graph_takes_fixed_shapes_bound_memory_and_one_stream(conv_card: ModelCard, tiny_model: Path) -> None:
    card = read_card(tiny_model)
    for options, words in (
        (EngineOptions(cuda_graph=True, io_binding=False), "without io_binding"),
        (EngineOptions(cuda_graph=True, streams=2), "2 streams were asked for.*a recorded CUDA graph"),
    ):
        with pytest.raises(BackendError, match=words):
            OrtBackend(tiny_model, card, "auto", options)
    with pytest.raises(BackendError, match="leaves its batch open and a recorded run has one shape"):
        OrtBackend(tiny_model, dataclasses.replace(card, dynamic=("batch",)), "auto", EngineOptions(cuda_graph=True))


def test_cuda_computes_in_whole_float32_unless_asked_otherwise() -> None:
    assert cuda_options(EngineOptions(), 1) == {"device_id": "1", "use_tf32": "0"}
    asked = EngineOptions(tf32=True, memory_limit_mb=3, cuda_graph=True)
    assert cuda_options(asked, 0) == {
        "device_id": "0",
        "use_tf32": "1",
        "gpu_mem_limit": "3145728",
        "arena_extend_strategy": "kSameAsRequested",
        "enable_cuda_graph": "1",
    }


@WITHOUT_GPU
def test_auto_says_nothing_of_a_gpu_that_nobody_expects(tiny_model: Path) -> None:
    backend = OrtBackend(tiny_model, read_card(tiny_model), "auto")
    assert (backend.info.device, backend.info.note) == ("cpu", "")
    backend.close()
