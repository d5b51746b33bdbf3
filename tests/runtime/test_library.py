"""The runtime as a library: what its import brings along, threads, worker processes, closing."""

import concurrent.futures
import multiprocessing
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from segship.runtime.errors import BackendError
from segship.runtime.segmenter import Segmenter

Photo = NDArray[np.uint8]
ENGINES = ("ort", "opencv", "openvino")
NEVER = ("torch", "onnx", "onnxsim", "safetensors", "ray", "tifffile", "matplotlib", "rich", "pandas", "kornia")
NOT_AT_ONCE = ("onnxruntime", "openvino", "openvino._pyopenvino")


@pytest.mark.parametrize(
    ("code", "strangers"),
    [
        ("import segship.runtime", (*NEVER, *NOT_AT_ONCE, "numpy", "cv2", "PIL")),
        ("from segship.runtime import Segmenter", (*NEVER, *NOT_AT_ONCE)),
        ("from segship.runtime import ModelCard, Preprocess, Result, SegshipError", (*NEVER, *NOT_AT_ONCE)),
    ],
)
def test_an_import_brings_nothing_that_is_not_needed(code: str, strangers: tuple[str, ...]) -> None:
    program = f"import sys\n{code}\nprint(sorted(set({strangers!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout == "[]\n", done.stderr


@pytest.mark.parametrize("engine", ENGINES)
def test_a_picture_needs_neither_torch_nor_what_else_the_runtime_may_use(engine: str, tiny_model: Path) -> None:
    program = f"""
import sys
import numpy as np
from segship.runtime import Segmenter
with Segmenter({str(tiny_model)!r}, backend={engine!r}, device="cpu") as segmenter:
    segmenter(np.zeros((9, 11, 3), np.uint8))
print(sorted(set({NEVER!r}) & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout == "[]\n", done.stderr


@pytest.mark.parametrize("engine", ENGINES)
def test_eight_threads_get_what_one_gets(engine: str, tiny_model: Path, photo: Photo) -> None:
    pictures = [np.roll(photo, 7 * number, axis=number % 2) for number in range(32)]
    with Segmenter(tiny_model, backend=engine, device="cpu") as segmenter:
        expected = [segmenter(picture).labels for picture in pictures]
        assert not np.array_equal(expected[1], expected[2])
        with concurrent.futures.ThreadPoolExecutor(8) as threads:
            results = list(threads.map(segmenter, pictures))
    for result, picture, labels in zip(results, pictures, expected, strict=True):
        np.testing.assert_array_equal(result.image, picture)
        np.testing.assert_array_equal(result.labels, labels)


@pytest.mark.parametrize("engine", ENGINES)
def test_two_streams_at_once_do_not_mix(engine: str, tiny_model: Path, photo: Photo) -> None:
    pictures = [photo, photo[::-1]]
    with Segmenter(tiny_model, backend=engine, device="cpu") as segmenter:
        expected = [segmenter(picture).labels for picture in pictures]
        for results in zip(*(segmenter.stream([picture] * 6) for picture in pictures), strict=True):
            for result, labels in zip(results, expected, strict=True):
                np.testing.assert_array_equal(result.labels, labels)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_segmenter_goes_to_a_worker_process_with_all_that_it_was_told(
    engine: str, tiny_model: Path, photo: Photo
) -> None:
    with Segmenter(
        tiny_model, backend=engine, device="cpu", tile=(40, 40), overlap=0.5, only=["ball"], palette="voc"
    ) as segmenter:
        expected = segmenter(photo)
        spawn = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(1, mp_context=spawn) as workers:
            result = workers.submit(segmenter, photo).result()
        segmenter(photo)  # and it is still here
    np.testing.assert_array_equal(result.labels, expected.labels)
    np.testing.assert_array_equal(result.overlay(), expected.overlay())
    assert result.card == expected.card


@pytest.mark.parametrize("engine", ENGINES)
def test_a_closed_segmenter_says_so_and_may_be_closed_again(engine: str, tiny_model: Path, photo: Photo) -> None:
    with Segmenter(tiny_model, backend=engine, device="cpu") as segmenter:
        segmenter.warmup()
        segmenter.close()
        segmenter.close()
        for use in (lambda: segmenter(photo), segmenter.warmup, lambda: list(segmenter.stream([photo]))):
            with pytest.raises(BackendError, match="closed"):
                use()


@pytest.mark.parametrize("engine", ENGINES)
def test_an_error_inside_its_block_closes_a_segmenter(engine: str, tiny_model: Path, photo: Photo) -> None:
    with pytest.raises(KeyError), Segmenter(tiny_model, backend=engine, device="cpu") as segmenter:
        raise KeyError("of the user's")
    with pytest.raises(BackendError, match="closed"):
        segmenter(photo)
