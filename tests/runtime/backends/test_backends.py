"""What every backend does, whatever engine it wraps."""

import dataclasses
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image as PillowImage

from segship.runtime.backends import Backend, default_backend, load_backend
from segship.runtime.backends.options import EngineOptions
from segship.runtime.card import ModelCard
from segship.runtime.errors import BackendError, DeviceError, MissingExtraError, ModelError, SegshipError
from segship.runtime.model_file import read_card
from segship.runtime.segmenter import Segmenter

ENGINES = ["ort", "opencv", "openvino", "torch"]
ONNX_ENGINES = ["ort", "opencv", "openvino"]
WITHOUT_GPU = pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="this machine has a GPU")
TORCH_IS_MISSING = """
import sys
sys.modules["torch"] = None
from segship.runtime.cli import main
sys.argv = ["seg-infer", *sys.argv[1:]]
main()
"""


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def model(engine: str, tiny_model: Path, tiny_checkpoint: Path) -> Path:
    return tiny_checkpoint if engine == "torch" else tiny_model


@pytest.fixture
def card(model: Path) -> ModelCard:
    return read_card(model)


@pytest.fixture
def backend(engine: str, model: Path, card: ModelCard) -> Iterator[Backend]:
    loaded = load_backend(engine, model, card, "cpu")
    yield loaded
    loaded.close()


@pytest.fixture
def batches() -> list[NDArray[np.float32]]:
    return list(np.random.default_rng(4).standard_normal((4, 1, 3, 48, 64), np.float32))


def test_logits_have_the_cards_shape_and_type(backend: Backend, batches: list[NDArray[np.float32]]) -> None:
    logits = backend.run(batches[0])
    assert logits.shape == (1, 6, 48, 64)
    assert logits.dtype == np.float32
    assert np.isfinite(logits).all()


def test_an_output_is_not_overwritten_by_later_runs(backend: Backend, batches: list[NDArray[np.float32]]) -> None:
    first = backend.run(batches[0])
    kept = first.copy()
    later = [backend.run(batch) for batch in batches[1:]]
    np.testing.assert_array_equal(first, kept)
    assert all((one != first).any() for one in later)


def test_the_same_batch_gives_the_same_logits(backend: Backend, batches: list[NDArray[np.float32]]) -> None:
    outputs = [backend.run(batches[i]) for i in (0, 1, 0)]
    np.testing.assert_array_equal(outputs[0], outputs[2])


def test_the_batch_is_left_alone_and_may_be_reused(backend: Backend, batches: list[NDArray[np.float32]]) -> None:
    expected = [backend.run(batch) for batch in batches]
    buffer = batches[0].copy()
    for batch, output in zip(batches, expected, strict=True):
        buffer[:] = batch
        np.testing.assert_array_equal(backend.run(buffer), output)
        np.testing.assert_array_equal(buffer, batch)


def test_it_computes_what_pytorch_computes(
    backend: Backend, batches: list[NDArray[np.float32]], tiny_checkpoint: Path
) -> None:
    reference = load_backend("torch", tiny_checkpoint, read_card(tiny_checkpoint), "cpu")
    for batch in batches:
        np.testing.assert_allclose(backend.run(batch), reference.run(batch), rtol=1e-4, atol=1e-5)


def test_it_says_what_really_runs(backend: Backend, engine: str) -> None:
    info = backend.info
    assert (info.backend, info.device) == (engine, "cpu")
    assert info.threads >= 1
    assert any(character.isdigit() for character in info.engine)
    assert str(info) == f"{engine} ({info.engine}) on cpu in fp32, {info.threads} CPU threads"


def test_after_closing_it_says_that_it_is_closed(
    engine: str, model: Path, card: ModelCard, batches: list[NDArray[np.float32]]
) -> None:
    backend = load_backend(engine, model, card, "cpu")
    backend.run(batches[0])
    backend.close()
    backend.close()
    with pytest.raises(BackendError, match="closed"):
        backend.run(batches[0])


def test_a_batch_of_other_channels_is_a_backend_error(backend: Backend) -> None:
    with pytest.raises(BackendError, match=r"failed: |the graph takes") as caught:
        backend.run(np.zeros((1, 1, 48, 64), np.float32))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("streams", [1, 2])
def test_several_threads_get_exactly_what_one_gets(
    engine: str, streams: int, model: Path, card: ModelCard, batches: list[NDArray[np.float32]]
) -> None:
    if streams > 1 and engine in ("opencv", "torch"):
        pytest.skip("it runs one at a time")
    backend = load_backend(engine, model, card, "cpu", EngineOptions(threads=2, streams=streams))
    expected = [backend.run(batch) for batch in batches]
    wrong: list[int] = []

    def work(first: int) -> None:
        order = [(first + step) % len(batches) for step in range(20)]
        wrong.extend(number for number in order if (backend.run(batches[number]) != expected[number]).any())

    with ThreadPoolExecutor(4) as threads:
        for done in [threads.submit(work, first) for first in range(4)]:
            done.result()
    assert wrong == []
    backend.close()


def test_closing_it_while_it_is_used_ends_every_run_with_a_result_or_an_error(
    engine: str, model: Path, card: ModelCard, batches: list[NDArray[np.float32]]
) -> None:
    backend = load_backend(engine, model, card, "cpu")
    expected = backend.run(batches[0])
    started = threading.Barrier(5)

    def work() -> str:
        started.wait()
        while True:
            try:
                np.testing.assert_array_equal(backend.run(batches[0]), expected)
            except BackendError as error:
                return str(error)

    with ThreadPoolExecutor(4) as threads:
        runs = [threads.submit(work) for _ in range(4)]
        started.wait()
        backend.close()
        assert [run.result(timeout=60) for run in runs] == ["this backend is closed"] * 4


def test_threads_that_were_asked_for_are_what_the_info_says(engine: str, model: Path, card: ModelCard) -> None:
    before = cv2.getNumThreads(), torch.get_num_threads()
    try:
        backend = load_backend(engine, model, card, "cpu", EngineOptions(threads=1))
        assert backend.info.threads == 1
        backend.close()
    finally:
        cv2.setNumThreads(before[0])
        torch.set_num_threads(before[1])


@WITHOUT_GPU
@pytest.mark.parametrize("device", ["cuda", "cuda:0"])
def test_cuda_is_an_error_where_there_is_none(engine: str, model: Path, card: ModelCard, device: str) -> None:
    with pytest.raises(DeviceError, match=r"was asked for.*use --device cpu"):
        load_backend(engine, model, card, device)


@pytest.mark.parametrize("device", ["nonsense", "", "CPU", "cuda:x", "cuda:-1", "gpu"])
def test_an_unknown_device_is_an_error_that_names_the_known_ones(
    engine: str, model: Path, card: ModelCard, device: str
) -> None:
    with pytest.raises(DeviceError, match=r"expected auto(, cpu or cuda| or cpu)") as caught:
        load_backend(engine, model, card, device)
    assert repr(device) in str(caught.value)


@WITHOUT_GPU
def test_auto_is_the_cpu_where_there_is_nothing_else(engine: str, model: Path, card: ModelCard) -> None:
    backend = load_backend(engine, model, card, "auto")
    assert backend.info.device == "cpu"
    backend.close()


@pytest.mark.parametrize("folder", ["Straße 道路", "with spaces and 'quotes'"])
def test_a_path_may_hold_any_letters_and_spaces(
    engine: str, model: Path, card: ModelCard, tmp_path: Path, batches: list[NDArray[np.float32]], folder: str
) -> None:
    path = tmp_path / folder / f"a {folder}{model.suffix}"
    path.parent.mkdir()
    shutil.copy(model, path)
    backend = load_backend(engine, path, card, "cpu")
    assert backend.run(batches[0]).shape == (1, 6, 48, 64)
    backend.close()


@pytest.mark.parametrize("content", ["missing", "empty", "text", "random", "truncated"])
def test_a_damaged_model_is_one_line_that_names_it(
    engine: str, model: Path, card: ModelCard, tmp_path: Path, content: str, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / f"bad{model.suffix}"
    texts = {"empty": b"", "text": b"a text\n" * 30, "random": np.random.default_rng(0).bytes(3000)}
    if content != "missing":
        path.write_bytes(texts.get(content, model.read_bytes()[:100_000]))
    capfd.readouterr()
    with pytest.raises(SegshipError) as caught:
        load_backend(engine, path, card, "cpu")
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("engine", ONNX_ENGINES, indirect=True)
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda card: dataclasses.replace(card, preprocess=dataclasses.replace(card.preprocess, size=(32, 32))),
            "32, 32",
        ),
        (
            lambda card: dataclasses.replace(card, class_names=card.class_names[:5], palette=card.palette[:5]),
            "1, 5, 48",
        ),
        (lambda card: dataclasses.replace(card, input_name="pixels"), "'pixels'"),
        (lambda card: dataclasses.replace(card, output_name="masks"), "'masks'"),
        (lambda card: dataclasses.replace(card, head="labels"), "returns labels"),
    ],
)
def test_a_card_of_another_model_is_refused_before_anything_runs(
    engine: str, model: Path, card: ModelCard, change: Callable[[ModelCard], ModelCard], words: str
) -> None:
    with pytest.raises(ModelError, match=words):
        load_backend(engine, model, change(card), "cpu")


def test_pytorch_does_not_run_onnx_files(tiny_model: Path) -> None:
    with pytest.raises(ModelError, match=r"runs checkpoints \(\.safetensors\)"):
        load_backend("torch", tiny_model, read_card(tiny_model), "cpu")


def test_an_unknown_backend_is_an_error_that_names_the_known_ones(tiny_model: Path) -> None:
    with pytest.raises(
        BackendError, match=r"no backend is called 'tflite'; known are .*opencv, .*openvino, .*ort, .*torch"
    ):
        load_backend("tflite", tiny_model, read_card(tiny_model), "cpu")


def test_onnx_runtime_is_the_default_where_it_is_installed() -> None:
    assert default_backend() == "ort"


def test_where_pytorch_is_missing_its_backend_is_one_line_that_says_how_to_install_it(
    tiny_checkpoint: Path, photo: NDArray[np.uint8], tmp_path: Path
) -> None:
    PillowImage.fromarray(photo).save(tmp_path / "photo.png")
    arguments = [str(tiny_checkpoint), str(tmp_path), "--backend", "torch"]
    done = subprocess.run(
        [sys.executable, "-c", TORCH_IS_MISSING, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: the torch backend needs torch, which does not import here")
    assert "pip install" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_foreign_backend_is_found_and_one_that_does_not_import_is_one_line(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "foreign-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: foreign\nVersion: 1.0\n")
    engines = {"foreign": "segship.runtime.backends.opencv:OpenCVBackend", "broken": "foreign.missing:Backend"}
    lines = ["[segship.backends]", *(f"{name} = {place}" for name, place in engines.items())]
    (folder / "entry_points.txt").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(tmp_path)
    card = read_card(tiny_model)
    load_backend("foreign", tiny_model, card, "cpu").close()
    with pytest.raises(
        MissingExtraError, match=r"the backend broken does not import here \(No module named 'foreign'\)"
    ):
        load_backend("broken", tiny_model, card, "cpu")


@pytest.mark.parametrize("backend", ONNX_ENGINES)
def test_a_checkpoint_is_no_onnx_file_and_the_message_says_what_to_do(tiny_checkpoint: Path, backend: str) -> None:
    with pytest.raises(ModelError, match=r"is a checkpoint.*seg-export.*--backend torch"):
        Segmenter(tiny_checkpoint, backend=backend)
