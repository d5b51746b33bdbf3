"""What is OpenCV's alone: its engines and its targets."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from segship.runtime.backends.opencv import OpenCVBackend
from segship.runtime.backends.options import EngineOptions
from segship.runtime.errors import BackendError, DeviceError
from segship.runtime.model_file import read_card

OPENCV_5 = cv2.__version__.startswith("5.")
BATCH = np.random.default_rng(0).standard_normal((1, 3, 48, 64), np.float32)


@pytest.mark.skipif(not OPENCV_5, reason="OpenCV 4 has one engine")
def test_both_engines_of_opencv_5_compute_the_same_and_the_info_names_the_rarer(tiny_model: Path) -> None:
    card = read_card(tiny_model)
    notes, outputs = [], []
    for engine in ("new", "classic", None):
        backend = OpenCVBackend(tiny_model, card, "cpu", EngineOptions(engine=engine))  # type: ignore[arg-type]
        notes.append(backend.info.note)
        outputs.append(backend.run(BATCH))
        backend.close()
    assert notes == ["", "its classic engine", ""]
    np.testing.assert_allclose(outputs[0], outputs[1], atol=1e-3)  # the classic one multiplies by Winograd's method
    np.testing.assert_array_equal(outputs[0], outputs[2])


@pytest.mark.skipif(OPENCV_5, reason="OpenCV 5 has it")
def test_opencv_4_refuses_an_engine_that_it_does_not_have(tiny_model: Path) -> None:
    with pytest.raises(BackendError, match=r"new engine was asked for, but OpenCV 4.* has the classic one only"):
        OpenCVBackend(tiny_model, read_card(tiny_model), "cpu", EngineOptions(engine="new"))


@pytest.mark.parametrize(
    ("device", "there", "words"),
    [
        (
            "opencl",
            cv2.dnn.DNN_TARGET_OPENCL in cv2.dnn.getAvailableTargets(cv2.dnn.DNN_BACKEND_OPENCV),
            "opencl was asked for, but this OpenCV .* finds no OpenCL driver of a GPU here; use --device cpu",
        ),
        (
            "cuda",
            cv2.dnn.DNN_TARGET_CUDA in cv2.dnn.getAvailableTargets(cv2.dnn.DNN_BACKEND_CUDA),
            "cuda was asked for, but this OpenCV .* runs networks on the CPU only",
        ),
    ],
)
def test_a_target_that_this_opencv_does_not_have_is_an_error(
    device: str, there: bool, words: str, tiny_model: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    if there:
        pytest.skip("this OpenCV has it")
    with pytest.raises(DeviceError, match=words):
        OpenCVBackend(tiny_model, read_card(tiny_model), device)
    assert capfd.readouterr() == ("", "")


def test_auto_is_the_cpu_where_this_opencv_has_no_cuda(tiny_model: Path) -> None:
    if cv2.dnn.DNN_TARGET_CUDA in cv2.dnn.getAvailableTargets(cv2.dnn.DNN_BACKEND_CUDA):
        pytest.skip("this OpenCV has it")
    backend = OpenCVBackend(tiny_model, read_card(tiny_model), "auto")
    assert (backend.info.device, backend.info.note) == ("cpu", "")
    backend.close()


def test_auto_says_why_it_takes_the_cpu_where_cuda_is_listed_and_does_not_work(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    if cv2.dnn.DNN_TARGET_CUDA in cv2.dnn.getAvailableTargets(cv2.dnn.DNN_BACKEND_CUDA):
        pytest.skip("it works")
    monkeypatch.setattr(cv2.dnn, "getAvailableTargets", lambda _: [cv2.dnn.DNN_TARGET_CUDA])
    card = read_card(tiny_model)
    backend = OpenCVBackend(tiny_model, card, "auto")
    assert backend.info.device == "cpu"
    assert backend.info.note.startswith("cuda is not used: OpenCV")
    monkeypatch.undo()
    on_cpu = OpenCVBackend(tiny_model, card, "cpu")
    np.testing.assert_array_equal(backend.run(BATCH), on_cpu.run(BATCH))
    for one in (backend, on_cpu):
        one.close()
    assert capfd.readouterr() == ("", "")


def test_auto_takes_cuda_where_it_works_and_says_so(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is read for CUDA here is a net of the CPU; which one is asked for is what counts."""
    targets: list[str] = []
    read = OpenCVBackend._read

    def watched(self: OpenCVBackend, model: Path, target: str, engine: str) -> Any:
        targets.append(target)
        return read(self, model, "cpu", engine)

    monkeypatch.setattr(cv2.dnn, "getAvailableTargets", lambda _: [cv2.dnn.DNN_TARGET_CUDA])
    monkeypatch.setattr(OpenCVBackend, "_read", watched)
    backend = OpenCVBackend(tiny_model, read_card(tiny_model), "auto")
    assert (targets, backend.info.device) == (["cuda"], "cuda:0")
    assert backend.info.note == ("its classic engine" if OPENCV_5 else "")
    backend.close()
    if OPENCV_5:  # which runs on the CPU only
        new = OpenCVBackend(tiny_model, read_card(tiny_model), "auto", EngineOptions(engine="new"))
        assert (targets, new.info.device) == (["cuda", "cpu"], "cpu")
        new.close()


def test_threads_are_those_of_the_whole_library(tiny_model: Path) -> None:
    before = cv2.getNumThreads()
    try:
        OpenCVBackend(tiny_model, read_card(tiny_model), "cpu", EngineOptions(threads=1)).close()
        assert cv2.getNumThreads() == 1
        backend = OpenCVBackend(tiny_model, read_card(tiny_model), "cpu")
        assert backend.info.threads == 1  # nothing was asked for, so nothing is changed
        backend.close()
    finally:
        cv2.setNumThreads(before)
