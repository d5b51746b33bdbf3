import json
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from segship.benchmarks import gpu as gpu_script
from segship.benchmarks.device_roads import RESIDENT, ResidentRoad, TorchRoad
from segship.benchmarks.engine_choice import Choice, file_sha256
from segship.benchmarks.gpu import gpu, variants
from segship.benchmarks.record import PICTURE, Latency, Throughput, read_bench
from segship.benchmarks.sampling import RoadCall, Rules, sample_in_turns
from segship.benchmarks.throughput import measure_throughput
from segship.runtime.errors import EXIT_INTERRUPTED, BackendError, SegshipError
from segship.runtime.prepare import graph_input
from segship.runtime.segmenter_plan import card_of

pytestmark = pytest.mark.extras


@pytest.fixture
def picture(tmp_path: Path, photo: NDArray[np.uint8]) -> Path:
    path = tmp_path / "one.jpg"
    cv2.imwrite(str(path), photo)
    return path


def test_the_whole_matrix_is_gone_through_on_a_cpu(
    tiny_model: Path,
    tiny_checkpoint: Path,
    picture: Path,
    tmp_path: Path,
    command: Callable[..., tuple[int, str, str]],
) -> None:
    out = tmp_path / "out"
    options = ["--device", "cpu", "--batch", "1", "--batch", "2", "--quick", "--seconds", "0", "--no-compile"]
    status, _, err = command(
        gpu,
        tiny_model,
        tmp_path / "missing.onnx",
        "--checkpoint",
        tiny_checkpoint,
        "--picture",
        picture,
        *options,
        "--out",
        out,
    )
    assert status == 0, err
    bench = read_bench(out / "gpu.json")
    found = {(entry.subject.asked, entry.subject.batch): entry for entry in bench.entries}
    assert {asked for asked, _ in found} >= {"ort", "ort:io_binding=true", "torch fp32, eager", "torch bf16, eager"}
    assert {RESIDENT, PICTURE, "network"} <= set(found["ort", 1].latency.samples_ns)
    assert found["ort", 1].throughput[0].images > 0
    assert found["torch fp32, eager", 1].subject.sha256 == file_sha256(tiny_checkpoint)
    refused = {(failure.asked, failure.error.partition(":")[0]) for failure in bench.failures}
    assert ("ort", "batch 2") in refused  # the graph takes one picture
    assert ("anything", f"cannot read the model {tmp_path / 'missing.onnx'}") in refused
    assert "| model |" in (out / "gpu.md").read_text(encoding="utf-8")
    assert "not measured: " in err


def test_what_was_measured_before_an_interruption_is_kept(
    tiny_model: Path,
    picture: Path,
    tmp_path: Path,
    command: Callable[..., tuple[int, str, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = 0

    def interrupted(roads: Sequence[RoadCall], rules: Rules) -> list[Latency | SegshipError]:
        nonlocal rows
        rows += 1
        if rows == 2:
            raise KeyboardInterrupt
        return sample_in_turns(roads, rules)

    monkeypatch.setattr(gpu_script, "sample_in_turns", interrupted)
    monkeypatch.setattr(gpu_script, "ON_CPU", ("ort",))
    options = [
        "--device",
        "cpu",
        "--batch",
        "1",
        "--batch",
        "1",
        "--quick",
        "--seconds",
        "0",
        "--out",
        tmp_path / "out",
    ]
    assert command(gpu, tiny_model, "--picture", picture, *options)[0] == EXIT_INTERRUPTED
    assert len(read_bench(tmp_path / "out/gpu.json").entries) == 1


def test_a_latency_outlives_a_failed_throughput(
    tiny_model: Path,
    picture: Path,
    tmp_path: Path,
    command: Callable[..., tuple[int, str, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def failing(choice: Choice, encoded: bytes, runs: tuple[int, ...], seconds: float) -> tuple[Throughput, ...]:
        if runs == (2,):
            raise BackendError("no memory left")
        return measure_throughput(choice, encoded, runs, seconds)

    monkeypatch.setattr(gpu_script, "measure_throughput", failing)
    monkeypatch.setattr(gpu_script, "ON_CPU", ("ort",))
    options = ["--device", "cpu", "--batch", "1", "--quick", "--seconds", "0", "--out", tmp_path / "out"]
    assert command(gpu, tiny_model, "--picture", picture, *options)[0] == 0
    bench = read_bench(tmp_path / "out/gpu.json")
    assert [one.concurrency for one in bench.entries[0].throughput] == [1]
    assert bench.failures[0].error == "batch 1, images/s with 2 runs at once: no memory left"


def test_a_device_that_pytorch_has_not_is_an_error_of_the_engine(tiny_checkpoint: Path) -> None:
    with pytest.raises(BackendError, match="PyTorch cannot put it on cuda:99: "):
        TorchRoad(tiny_checkpoint, np.zeros((1, 3, 48, 64), np.float32), "cuda:99", "fp32", compiled=False)


def test_where_nothing_runs_it_fails(
    tiny_model: Path, picture: Path, tmp_path: Path, command: Callable[..., tuple[int, str, str]]
) -> None:
    options = ["--picture", picture, "--device", "cpu", "--batch", "2", "--quick", "--out", tmp_path / "out"]
    assert command(gpu, tiny_model, *options)[0] == 1  # the graph takes one picture


def test_without_a_gpu_it_says_so(
    tiny_model: Path, picture: Path, tmp_path: Path, command: Callable[..., tuple[int, str, str]]
) -> None:
    status, _, err = command(gpu, tiny_model, "--picture", picture, "--out", tmp_path / "out")
    assert (status, "rehearse with --device cpu" in err) == (1, True)
    assert not (tmp_path / "out").exists()


def test_tensor_float_is_asked_of_float32_files_alone(tiny_model: Path) -> None:
    card = card_of(tiny_model)
    asked = [choice.asked for choice in variants(tiny_model, card, "cuda", 1)]
    assert "ort:tf32=true" in asked
    half = card_of(tiny_model)
    object.__setattr__(half, "precision", "fp16")
    assert not any("tf32" in choice.asked for choice in variants(tiny_model, half, "cuda", 1))


def test_pytorch_and_bound_onnx_runtime_take_the_same_input(
    tiny_model: Path, tiny_checkpoint: Path, photo: NDArray[np.uint8]
) -> None:
    card = card_of(tiny_model)
    batch = graph_input(card, card.preprocess.geometry(photo))
    assert ResidentRoad(Choice(tiny_model, device="cpu"), card, batch)()[RESIDENT] > 0
    taken = TorchRoad(tiny_checkpoint, batch, "cpu", "fp32", compiled=False)()
    assert taken["network"] == taken[RESIDENT] > 0
    assert taken["transfer"] > 0
    json.dumps(taken)
