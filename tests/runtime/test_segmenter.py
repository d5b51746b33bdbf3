import dataclasses
import gc
import itertools
import json
import pickle
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image as PillowImage

from segship.runtime.backends import EngineInfo, default_backend, load_backend
from segship.runtime.backends.options import EngineOptions
from segship.runtime.card import ModelCard
from segship.runtime.certificate import Certificate, Proof
from segship.runtime.compare import STRICT, Expected, compare
from segship.runtime.errors import BackendError, CardError, ImageError, ModelError, SegshipError, UnprovenWarning
from segship.runtime.images import Conversion, ImageSource
from segship.runtime.labels import labels_from_logits
from segship.runtime.model_file import content_sha256, read_card, write_card
from segship.runtime.network import run_checked
from segship.runtime.outputs import OutputOptions
from segship.runtime.postprocess import PostProcess
from segship.runtime.processing import Stages
from segship.runtime.result import Result
from segship.runtime.segmenter import Segmenter
from segship.runtime.source_item import SourceItem
from segship.runtime.sources import open_sources

Photo = NDArray[np.uint8]
CONVERSIONS: list[Conversion] = ["depth", "grey", "alpha"]
ENGINES = ["ort", "opencv", "torch"]
ONNX_ENGINES = ["ort", "opencv"]
DEPTHS = {"uint8": np.uint8, "uint16": np.uint16}
WITHOUT_TRAINING = """
import importlib, pkgutil, sys
for name in ("torch", "onnx", "onnxsim", "safetensors", "matplotlib"):
    sys.modules[name] = None
import numpy as np
import segship.runtime
for module in pkgutil.walk_packages(segship.runtime.__path__, "segship.runtime."):
    importlib.import_module(module.name)
from segship.runtime import Segmenter
for backend in ("ort", "opencv"):
    with Segmenter(sys.argv[1], backend=backend) as segmenter:
        print(segmenter.info.backend, segmenter(np.zeros((9, 11, 3), np.uint8)).labels.shape)
"""


def expected(reference: Result, candidate: Result) -> Expected:
    """Return what a reference says in the form in which a candidate says it."""
    return Expected.of(reference, Stages(reference.image, None, None), candidate.card)


@pytest.fixture(scope="module", params=ENGINES)
def segmenter(request: pytest.FixtureRequest, tiny_model: Path, tiny_checkpoint: Path) -> Iterator[Segmenter]:
    path = tiny_checkpoint if request.param == "torch" else tiny_model
    with Segmenter(path, backend=request.param, device="cpu") as loaded:
        yield loaded


@pytest.fixture(scope="module")
def ort(tiny_model: Path) -> Iterator[Segmenter]:
    with Segmenter(tiny_model, backend="ort", device="cpu") as loaded:
        yield loaded


@pytest.fixture(params=ONNX_ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def grey_model(engine: str, depth: str, models: dict[str, Path], checkpoints: dict[str, Path]) -> Path:
    return (checkpoints if engine == "torch" else models)[depth]


def photos(photo: Photo, count: int) -> list[Photo]:
    """Pictures whose width tells their number."""
    return [photo[:, : 20 + number] for number in range(count)]


def test_labels_lie_at_the_pictures_own_size(segmenter: Segmenter, photo: Photo) -> None:
    result = segmenter(photo)
    assert result.labels.shape == (90, 120)
    assert result.labels.dtype == np.uint8
    assert result.logits is not None
    assert result.logits.shape == (6, 48, 64)
    assert result.logits.dtype == np.float32
    np.testing.assert_array_equal(result.labels, labels_from_logits(result.logits, (90, 120), result.card))
    assert len(np.unique(result.labels)) > 1
    np.testing.assert_array_equal(result.image, photo)
    assert set(result.timings) >= {"decode_ms", "prepare_ms", "network_ms", "labels_ms"}


def test_every_engine_says_what_pytorch_says(segmenter: Segmenter, tiny_checkpoint: Path, photo: Photo) -> None:
    with Segmenter(tiny_checkpoint, backend="torch", device="cpu") as reference:
        result = segmenter(photo)
        comparison = compare(expected(reference(photo), result), result)
    assert comparison.passes(STRICT), comparison


def test_a_result_is_not_overwritten_by_later_ones(segmenter: Segmenter, photo: Photo) -> None:
    first = segmenter(photo)
    assert first.logits is not None
    labels, logits = first.labels.copy(), first.logits.copy()
    for turned in (photo[::-1], photo[:, ::-1]):
        segmenter(turned)
    np.testing.assert_array_equal(first.labels, labels)
    np.testing.assert_array_equal(first.logits, logits)


def test_a_file_an_image_and_an_array_give_the_same(segmenter: Segmenter, photo: Photo, tmp_path: Path) -> None:
    path = tmp_path / "Straße 道路" / "a photo.png"
    path.parent.mkdir()
    PillowImage.fromarray(photo).save(path)
    expected = segmenter(photo)
    with PillowImage.open(path) as image:
        for source in (path, str(path), image, PillowImage.fromarray(photo), photo[::-1][::-1]):
            np.testing.assert_array_equal(segmenter(source).labels, expected.labels)
    assert segmenter(path).source == str(path)
    assert expected.source == "array"


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (48, 64), (7, 5)])
def test_pictures_of_any_size_are_segmented(segmenter: Segmenter, size: tuple[int, int]) -> None:
    picture = np.random.default_rng(1).integers(0, 256, (*size, 3), np.uint8)
    result = segmenter(picture)
    assert result.labels.shape == size
    assert result.overlay().shape == (*size, 3)
    assert sum(result.areas.values()) == pytest.approx(1)


def test_a_grey_picture_is_taken_by_a_colour_network(segmenter: Segmenter, photo: Photo) -> None:
    np.testing.assert_array_equal(segmenter(photo[..., 0]).labels, segmenter(photo[..., :1].repeat(3, axis=2)).labels)


@pytest.mark.parametrize("name", ENGINES)
def test_a_binary_network_tells_its_object_from_the_rest(
    name: str, binary_model: Path, binary_checkpoint: Path, photo: Photo
) -> None:
    with Segmenter(binary_checkpoint, backend="torch", device="cpu") as segmenter:
        reference = segmenter(photo)
    with Segmenter(binary_checkpoint if name == "torch" else binary_model, backend=name, device="cpu") as segmenter:
        result = segmenter(photo)
    assert result.logits is not None
    assert result.logits.shape == (1, 48, 64)
    assert result.probabilities.shape == (2, 90, 120)
    np.testing.assert_allclose(result.probabilities.sum(axis=0), 1, atol=1e-6)
    np.testing.assert_array_equal(result.labels, result.probabilities[1] > 0.45)
    assert 0.1 < result.areas["object"] < 0.9
    assert result.areas["rest"] + result.areas["object"] == pytest.approx(1)
    comparison = compare(expected(reference, result), result)
    assert comparison.passes(STRICT), comparison


@pytest.mark.parametrize("name", ONNX_ENGINES)
def test_a_binary_model_that_returns_labels_gives_those_of_its_logits(
    name: str, binary_labels_model: Path, binary_model: Path, photo: Photo
) -> None:
    with Segmenter(binary_model, backend=name) as segmenter:
        reference = segmenter(photo)
    with Segmenter(binary_labels_model, backend=name) as segmenter:
        result = segmenter(photo)
    assert result.logits is None
    assert set(np.unique(result.labels)) == {0, 1}
    comparison = compare(expected(reference, result), result)
    assert comparison.passes(STRICT), comparison


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("size", [(90, 120), (48, 64), (30, 120), (20, 25)])
def test_every_engine_blends_the_tiles_of_a_picture_to_what_pytorch_says(
    name: str, size: tuple[int, int], tiled_model: Path, tiled_checkpoint: Path, photo: Photo
) -> None:
    picture = photo[: size[0], : size[1]]
    with Segmenter(tiled_checkpoint, backend="torch", device="cpu") as segmenter:
        reference = segmenter(picture)
    with Segmenter(tiled_checkpoint if name == "torch" else tiled_model, backend=name, device="cpu") as segmenter:
        result = segmenter(picture)
    assert result.logits is not None
    assert result.logits.shape == (6, *size)
    np.testing.assert_array_equal(result.labels, result.logits.argmax(axis=0))
    np.testing.assert_array_equal(result.probabilities.argmax(axis=0), result.labels)
    assert len(np.unique(result.labels)) > 1
    comparison = compare(expected(reference, result), result)
    assert comparison.passes(STRICT), comparison


def test_a_picture_of_one_tile_is_segmented_as_a_whole_one_is(tiled_model: Path, ort: Segmenter, photo: Photo) -> None:
    with Segmenter(tiled_model, backend="ort") as segmenter:
        np.testing.assert_array_equal(segmenter(photo[:48, :64]).logits, ort(photo[:48, :64]).logits)


def test_a_stream_of_tiled_pictures_gives_what_single_calls_give(tiled_model: Path, photo: Photo) -> None:
    pictures = photos(photo, 9)
    with Segmenter(tiled_model, backend="ort") as segmenter:
        for picture, result in zip(pictures, segmenter.stream(pictures), strict=True):
            np.testing.assert_array_equal(result.logits, segmenter(picture).logits)
            assert set(result.timings) >= {"decode_ms", "prepare_ms", "network_ms", "labels_ms"}


def test_a_tile_without_numbers_is_an_error(
    engine: str, nan_model: Path, tiled_model: Path, with_card: Callable[..., Path], photo: Photo
) -> None:
    model = with_card(nan_model, dataclasses.replace(read_card(tiled_model), certificate=None))
    with Segmenter(model, backend=engine) as segmenter, pytest.raises(BackendError, match="NaN or infinite"):
        segmenter(photo)


def test_labels_of_tiles_cannot_be_blended_so_such_a_card_is_refused(
    tiny_labels_model: Path, with_card: Callable[..., Path]
) -> None:
    text = json.dumps(json.loads(read_card(tiny_labels_model).to_json()) | {"tile_overlap": 0.5})
    with pytest.raises(CardError, match="export with --head logits"):
        Segmenter(with_card(tiny_labels_model, text))


def test_areas_are_the_shares_of_the_classes(ort: Segmenter, photo: Photo) -> None:
    result = ort(photo)
    assert list(result.areas) == list(ort.card.class_names)
    assert sum(result.areas.values()) == pytest.approx(1)
    for class_id, share in enumerate(result.areas.values()):
        assert share == pytest.approx((result.labels == class_id).mean())


def test_probabilities_sum_to_one_and_agree_with_the_labels(ort: Segmenter, photo: Photo) -> None:
    result = ort(photo)
    assert result.probabilities.shape == (6, 90, 120)
    np.testing.assert_allclose(result.probabilities.sum(axis=0), 1, atol=1e-5)
    np.testing.assert_array_equal(result.probabilities.argmax(axis=0), result.labels)


def test_an_overlay_goes_from_the_picture_to_the_colours(ort: Segmenter, photo: Photo) -> None:
    result = ort(photo)
    np.testing.assert_array_equal(result.color(), np.array(ort.card.palette, np.uint8)[result.labels])
    np.testing.assert_array_equal(result.overlay(alpha=0), photo)
    np.testing.assert_array_equal(result.overlay(alpha=1), result.color())


def test_saved_pictures_hold_what_the_result_holds(ort: Segmenter, photo: Photo, tmp_path: Path) -> None:
    result = ort(photo)
    paths = result.save(tmp_path, ["mask", "color", "overlay"], name="sub/a.b", options=OutputOptions(alpha=0.3))
    assert paths["mask"] == tmp_path / "mask" / "sub" / "a.b.png"
    with PillowImage.open(paths["mask"]) as mask:
        assert mask.mode == "P"
        np.testing.assert_array_equal(np.asarray(mask), result.labels)
    np.testing.assert_array_equal(np.asarray(PillowImage.open(paths["color"])), result.color())
    np.testing.assert_array_equal(np.asarray(PillowImage.open(paths["overlay"])), result.overlay(0.3))


def test_a_model_that_returns_labels_gives_those_of_its_logits(
    engine: str, tiny_labels_model: Path, with_card: Callable[..., Path], ort: Segmenter, photo: Photo
) -> None:
    with Segmenter(tiny_labels_model, backend=engine) as segmenter:
        result = segmenter(photo)
    assert result.logits is None
    assert result.labels.dtype == np.uint8
    comparison = compare(expected(ort(photo), result), result)
    assert comparison.passes(STRICT), comparison
    with pytest.raises(ModelError, match="export it with --head logits"):
        _ = result.probabilities


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("name", ENGINES)
def test_grey_networks_take_grey_files_of_either_depth(
    name: str, depth: str, grey_models: dict[str, Path], grey_checkpoints: dict[str, Path], photo: Photo, tmp_path: Path
) -> None:
    pixels = photo[..., 0].astype(DEPTHS[depth]) * (257 if depth == "uint16" else 1)
    path = tmp_path / "grey.png"
    PillowImage.fromarray(pixels).save(path)
    with Segmenter(grey_model(name, depth, grey_models, grey_checkpoints), backend=name, device="cpu") as segmenter:
        result = segmenter(path)
    assert result.labels.shape == (90, 120)
    np.testing.assert_array_equal(result.image[..., 0], pixels)
    assert result.overlay(0).dtype == np.uint8


@pytest.mark.parametrize("name", ENGINES)
def test_a_16_bit_picture_is_not_quantised_on_its_way_to_the_logits(
    name: str, grey_models: dict[str, Path], grey_checkpoints: dict[str, Path], photo: Photo, tmp_path: Path
) -> None:
    coarse = photo[..., 0].astype(np.uint16) << 8
    fine = coarse + np.random.default_rng(0).integers(0, 256, coarse.shape).astype(np.uint16)
    np.testing.assert_array_equal(coarse >> 8, fine >> 8)
    logits = []
    with Segmenter(grey_model(name, "uint16", grey_models, grey_checkpoints), backend=name, device="cpu") as segmenter:
        for pixels in (coarse, fine):
            PillowImage.fromarray(pixels).save(tmp_path / "grey.png")
            logits.append(segmenter(tmp_path / "grey.png").logits)
            np.testing.assert_array_equal(logits[-1], segmenter(pixels).logits)
    assert logits[0] is not None
    assert logits[1] is not None
    assert (logits[0] != logits[1]).mean() > 0.9


@pytest.mark.parametrize(
    ("conversion", "picture"),
    [
        ("depth", np.arange(2000, dtype=np.uint16).reshape(40, 50)),
        ("grey", np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)),
        ("alpha", np.random.default_rng(0).integers(0, 256, (40, 50, 1), np.uint8).repeat(4, axis=2)),
    ],
)
def test_a_lossy_conversion_is_refused_until_it_is_asked_for(
    conversion: Conversion, picture: NDArray[np.uint8], grey_models: dict[str, Path]
) -> None:
    with Segmenter(grey_models["uint8"], backend="ort") as segmenter:
        with pytest.raises(ImageError, match=f"ask for it: --convert {conversion}"):
            segmenter(picture)
        others = [other for other in CONVERSIONS if other != conversion]
    with Segmenter(grey_models["uint8"], backend="ort", convert=others) as segmenter, pytest.raises(ImageError):
        segmenter(picture)
    with Segmenter(grey_models["uint8"], backend="ort", convert=[conversion]) as segmenter:
        assert segmenter(picture).labels.shape == (40, 50)


def test_a_stream_gives_what_single_calls_give_in_order(segmenter: Segmenter, photo: Photo) -> None:
    pictures = photos(photo, 20)
    results = list(segmenter.stream(pictures))
    assert [result.labels.shape[1] for result in results] == [20 + number for number in range(20)]
    for picture, result in zip(pictures, results, strict=True):
        np.testing.assert_array_equal(result.labels, segmenter(picture).labels)


def test_what_follows_a_picture_is_handed_out_in_its_stead(ort: Segmenter, photo: Photo) -> None:
    def then(result: Result) -> tuple[int, int]:
        return result.tag, result.labels.shape[1]

    pairs = list(ort.stream(photos(photo, 9), then=then))
    assert pairs == [(number, 20 + number) for number in range(9)]


def test_an_error_ends_a_stream_after_the_pictures_before_it(ort: Segmenter, photo: Photo) -> None:
    threads = threading.active_count()
    pictures: list[ImageSource] = [photo, photo, Path("missing.png"), photo]
    stream = ort.stream(pictures)
    assert [next(stream).labels.shape for _ in range(2)] == [(90, 120)] * 2
    with pytest.raises(ImageError, match=r"missing\.png"):
        next(stream)
    assert threading.active_count() == threads
    assert list(stream) == []


def test_a_stream_goes_on_where_errors_are_taken_care_of(ort: Segmenter, photo: Photo) -> None:
    errors: list[tuple[int, SegshipError]] = []
    pictures: list[ImageSource] = [photo, Path("a.png"), photo, np.zeros((4, 4, 3), np.float32), photo]
    results = list(ort.stream(pictures, on_error=lambda number, error: errors.append((number, error))))
    assert len(results) == 3
    assert [number for number, _ in errors] == [1, 3]
    assert all(isinstance(error, ImageError) for _, error in errors)


def test_an_error_in_what_follows_a_picture_is_raised(ort: Segmenter, photo: Photo) -> None:
    def then(result: Result) -> None:
        raise ZeroDivisionError("in my own code")

    with pytest.raises(ZeroDivisionError, match="in my own code"):
        list(ort.stream([photo], then=then, on_error=lambda number, error: None))


def test_an_endless_stream_is_read_only_a_little_ahead_and_can_be_closed(ort: Segmenter, photo: Photo) -> None:
    threads = threading.active_count()
    read = itertools.count()
    taken = 0

    def pictures() -> Iterator[Photo]:
        while True:
            next(read)
            yield photo

    stream = ort.stream(pictures())
    for _ in range(12):
        next(stream)
        taken += 1
    stream.close()  # type: ignore[attr-defined]
    gc.collect()
    assert taken <= next(read) <= taken + 7
    assert threading.active_count() == threads
    assert ort(photo).labels.shape == (90, 120)


def test_a_failing_source_of_pictures_is_raised(ort: Segmenter, photo: Photo) -> None:
    def pictures() -> Iterator[Photo]:
        yield photo
        raise OSError("the camera is gone")

    with pytest.raises(OSError, match="the camera is gone"):
        list(ort.stream(pictures()))


def test_an_error_while_a_result_is_used_leaves_no_threads(ort: Segmenter, photo: Photo) -> None:
    threads = threading.active_count()

    def use() -> None:
        for _ in ort.stream(itertools.repeat(photo), on_error=stop):
            raise ZeroDivisionError

    def stop(number: int, error: SegshipError) -> None:
        raise error

    with pytest.raises(ZeroDivisionError):
        use()
    gc.collect()
    with pytest.raises(ImageError):
        list(ort.stream([photo, Path("missing.png"), *[photo] * 9], on_error=stop))
    assert threading.active_count() == threads


def test_logits_that_are_no_numbers_are_an_error(engine: str, nan_model: Path, photo: Photo) -> None:
    with Segmenter(nan_model, backend=engine) as segmenter, pytest.raises(BackendError, match="NaN or infinite"):
        segmenter(photo)


def test_labels_of_classes_that_the_card_lacks_are_an_error(
    engine: str, tiny_labels_model: Path, with_card: Callable[..., Path], ort: Segmenter, photo: Photo
) -> None:
    assert ort(photo).labels.max() > 0
    card = read_card(tiny_labels_model)
    one = dataclasses.replace(card, class_names=card.class_names[:1], palette=card.palette[:1], certificate=None)
    with (
        Segmenter(with_card(tiny_labels_model, one), backend=engine) as segmenter,
        pytest.raises(BackendError, match=r"its card promises labels \(1, 48, 64\) of 0…0"),
    ):
        segmenter(photo)


@pytest.fixture
def conv(write_conv_model: Callable[..., Path], conv_card: ModelCard, tmp_path: Path) -> Callable[..., Path]:
    """Write a network of one convolution, always of the same weights, in the form that the card's fields say."""

    def write(**fields: Any) -> Path:
        return write_conv_model(
            tmp_path / f"conv{len(list(tmp_path.iterdir()))}.onnx", dataclasses.replace(conv_card, **fields)
        )

    return write


def test_a_batch_gives_what_single_calls_give(engine: str, conv: Callable[..., Path], photo: Photo) -> None:
    pictures = [photo, photo[:50], photo[:, :7]]
    with Segmenter(conv(dynamic=("batch",)), backend=engine) as segmenter:
        together = segmenter.batch(pictures)
        alone = [segmenter(picture) for picture in pictures]
    assert [result.labels.shape for result in together] == [(90, 120), (50, 120), (90, 7)]
    for one, other in zip(together, alone, strict=True):
        np.testing.assert_array_equal(one.image, other.image)
        assert one.logits is not None
        assert other.logits is not None
        np.testing.assert_allclose(one.logits, other.logits, atol=1e-5)
        assert (one.labels == other.labels).mean() > 0.999


@pytest.mark.parametrize("fields", [{}, {"dynamic": ("batch",), "tile_overlap": 0.5}])
def test_a_model_of_one_picture_at_a_time_takes_no_batch(
    conv: Callable[..., Path], fields: dict[str, Any], photo: Photo
) -> None:
    with (
        Segmenter(conv(**fields), backend="ort") as segmenter,
        pytest.raises(ModelError, match="cut into tiles" if fields else r"takes one picture at a time; export it"),
    ):
        segmenter.batch([photo, photo])


@pytest.mark.parametrize("head", ["logits", "labels"])
def test_an_open_size_is_chosen_when_a_model_is_loaded_or_later(
    engine: str, head: str, conv: Callable[..., Path], photo: Photo
) -> None:
    model = conv(dynamic=("size",), head=head, output_name=head)
    with Segmenter(model, backend=engine) as segmenter, Segmenter(model, backend=engine, size=(40, 16)) as other:
        assert (segmenter.card.preprocess.size, other.card.preprocess.size) == ((24, 32), (40, 16))
        later = segmenter.at_size((40, 16))
        np.testing.assert_array_equal(later(photo).labels, other(photo).labels)
        assert later.processing.stages(photo).resized is not None
        assert later.processing.infer([later.processing.prepare(photo)])[0].shape[-2:] == (40, 16)
        assert (segmenter(photo).labels != other(photo).labels).any()
        with pytest.raises(BackendError, match="its card promises"):
            run_checked(segmenter.processing.backend, segmenter.card, np.zeros((1, 3, 40, 16), np.float32))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"dynamic": ("size",)}, "multiples of 8; the next good size is 48×16"),
        ({}, r"this model's is fixed at 24×32; export it with --dynamic size"),
    ],
)
def test_a_size_that_the_graph_does_not_take_is_refused(
    conv: Callable[..., Path], fields: dict[str, Any], words: str
) -> None:
    with pytest.raises(CardError, match=words):
        Segmenter(conv(**fields), backend="ort", size=(42, 16))


def test_a_model_for_frames_takes_no_other_pictures(engine: str, conv: Callable[..., Path], photo: Photo) -> None:
    model = conv(frame=(24, 32), input_form="pixels", head="labels", output_name="labels")
    with Segmenter(model, backend=engine) as segmenter:
        assert segmenter(photo[:24, :32]).labels.shape == (24, 32)
        stages = segmenter.processing.stages(photo[:24, :32])
        assert (stages.resized, stages.normalised) == (None, None)
        with pytest.raises(ImageError, match=r"its 90×120 pixels do not fit a model of 24×32 frames"):
            segmenter(photo)
        with pytest.raises(ImageError, match="do not fit"):
            segmenter(photo[:32, :24])


@pytest.mark.parametrize("task", ["multiclass", "binary"])
def test_a_model_that_returns_probabilities_gives_those_of_its_logits(
    engine: str, task: str, conv: Callable[..., Path], conv_card: ModelCard, photo: Photo
) -> None:
    two = {"class_names": conv_card.class_names[:2], "palette": conv_card.palette[:2], "threshold": 0.3}
    fields = {"task": task} | (two if task == "binary" else {})
    small = photo[:24, :32]  # of the network's size: upscaled, logarithms of sums are not sums of logarithms
    with (
        Segmenter(conv(**fields), backend=engine) as logits,
        Segmenter(conv(head="probabilities", output_name="probabilities", **fields), backend=engine) as segmenter,
    ):
        expected, result = logits(small), segmenter(small)
    np.testing.assert_allclose(result.probabilities, expected.probabilities, atol=1e-5)
    assert (result.labels == expected.labels).mean() > 0.998
    assert len(np.unique(result.labels)) > 1


def test_what_was_not_proven_is_said_once(conv: Callable[..., Path], photo: Photo) -> None:
    model = conv()
    with Segmenter(model, backend="ort") as segmenter:
        info = segmenter.info
    row = Proof("ort", info.engine, "cpu", "fp32", "a gate", True, 1e-6, 1e-7, 1.0, 1.0, 0, 1.0)
    certificate = Certificate(content_sha256(model), "PyTorch", "8 real", 1e-4, 1e-3, (row,))
    card = dataclasses.replace(read_card(model), certificate=certificate)
    write_card(model, card)
    with Segmenter(model, backend="ort", device="cpu") as segmenter:
        segmenter(photo)  # a warning is an error here
    with pytest.warns(UnprovenWarning, match="did not compare it with PyTorch on OpenCV") as caught:
        segmenter = Segmenter(model, backend="opencv", device="cpu")
    assert len(caught) == 1
    assert caught[0].filename == __file__
    with segmenter:
        segmenter(photo)
        segmenter.processing.stages(photo)
    write_card(model, dataclasses.replace(card, threshold=0.4))
    with pytest.warns(UnprovenWarning, match="its graph, weights or card were changed since"):
        Segmenter(model, backend="ort", device="cpu").close()


def test_an_engine_that_is_loaded_already_is_taken_with_its_card(conv: Callable[..., Path], photo: Photo) -> None:
    model = conv()
    card = read_card(model)
    backend = load_backend("ort", model, card, "cpu")
    with pytest.raises(CardError, match="needs the card that it was loaded with"):
        Segmenter(model, backend=backend)
    with Segmenter(model, backend=backend, card=card) as segmenter, Segmenter(model, backend="ort") as loaded:
        np.testing.assert_array_equal(segmenter(photo).labels, loaded(photo).labels)


def test_a_model_without_card_takes_one_that_is_given(
    engine: str, tiny_model: Path, with_card: Callable[..., Path], ort: Segmenter, photo: Photo
) -> None:
    bare = with_card(tiny_model, None)
    with pytest.raises(CardError, match="no segship card"):
        Segmenter(bare, backend=engine)
    with Segmenter(bare, backend=engine, card=read_card(tiny_model)) as segmenter:
        assert (segmenter(photo).labels == ort(photo).labels).mean() > 0.999


def test_a_given_card_does_not_overrule_the_models_own(tiny_model: Path) -> None:
    card = dataclasses.replace(read_card(tiny_model), class_names=tuple("uvwxyz"))
    with pytest.raises(CardError, match=r"carries its own card.*leave out --card"):
        Segmenter(tiny_model, card=card)


def test_the_default_engine_says_which_it_is(tiny_model: Path) -> None:
    with Segmenter(str(tiny_model)) as segmenter:
        assert segmenter.info.backend == default_backend()
        described = segmenter.describe()
    assert described["engine"]["backend"] == default_backend()
    assert (described["network"], described["size"], described["head"]) == ("unet", [48, 64], "logits")
    assert (described["task"], described["tile_overlap"]) == ("multiclass", None)
    json.dumps(described)


def test_after_closing_it_says_that_it_is_closed(engine: str, tiny_model: Path, photo: Photo) -> None:
    with Segmenter(tiny_model, backend=engine) as segmenter:
        segmenter(photo)
    with pytest.raises(BackendError, match="closed"):
        segmenter(photo)


def test_a_model_of_any_name_is_a_model(engine: str, tiny_model: Path, tmp_path: Path, photo: Photo) -> None:
    path = tmp_path / "Modell für Straßen.v2"
    shutil.copy(tiny_model, path)
    with Segmenter(path, backend=engine) as segmenter:
        assert segmenter(photo).labels.shape == (90, 120)


@pytest.mark.extras
def test_the_runtime_works_where_nothing_of_training_is_installed(tiny_model: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TRAINING, str(tiny_model)], capture_output=True, text=True, check=False
    )
    assert done.stdout.splitlines() == ["ort (9, 11)", "opencv (9, 11)"], done.stderr


class Counting:
    """An engine that keeps the shapes of what it was given, and whether it was closed."""

    def __init__(self, model: Path, card: ModelCard) -> None:
        self.engine = load_backend("ort", model, card, "cpu")
        self.shapes: list[tuple[int, ...]] = []
        self.is_closed = False

    @property
    def info(self) -> EngineInfo:
        return self.engine.info

    def run(self, batch: NDArray[Any]) -> NDArray[Any]:
        self.shapes.append(batch.shape)
        return self.engine.run(batch)

    def close(self) -> None:
        self.is_closed = True
        self.engine.close()


def test_a_tag_comes_back_with_its_picture(ort: Segmenter, photo: Photo) -> None:
    tagged: list[Any] = [(photo, "first"), photo, (photo, {"any": "thing"})]
    errors: list[Any] = []
    failing = (np.zeros((4, 4, 3), np.float32), "bad")
    results = list(ort.stream([*tagged, failing], on_error=lambda tag, error: errors.append(tag)))
    assert [result.tag for result in results] == ["first", 1, {"any": "thing"}]
    assert errors == ["bad"]
    assert ort(photo).tag is None


def test_an_item_of_a_source_is_its_own_tag_and_gives_its_name(ort: Segmenter, photo: Photo, tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        PillowImage.fromarray(photo).save(tmp_path / name)
    missing = SourceItem(ImageError("c.png: gone"), "c.png", Path("c.png"))
    errors: list[tuple[Any, str]] = []
    with open_sources([str(tmp_path)]) as source:
        items = list(source)
        results = list(ort.stream([*items, missing], on_error=lambda tag, error: errors.append((tag, str(error)))))
    assert [result.tag for result in results] == items
    assert [result.source for result in results] == [str(tmp_path / "a.png"), str(tmp_path / "b.png")]
    assert errors == [(missing, "c.png: gone")]


def test_timings_of_a_stream_tell_of_source_and_outputs_too(ort: Segmenter, photo: Photo) -> None:
    (timings,) = ort.stream([photo], then=lambda result: result.timings)
    assert set(timings) == {f"{stage}_ms" for stage in ("read", "decode", "prepare", "network", "labels", "outputs")}
    assert all(taken >= 0 for taken in timings.values())


def test_classes_that_were_not_asked_for_become_no_class(tiny_model: Path, ort: Segmenter, photo: Photo) -> None:
    labels, card = ort(photo).labels, ort.card
    for only in (f"{card.class_names[1].upper()}, 2", [card.class_names[1], card.class_names[2]]):
        with Segmenter(tiny_model, backend="ort", only=only) as segmenter:
            assert segmenter.processing.only == frozenset({1, 2})
            result = segmenter(photo)
        np.testing.assert_array_equal(result.labels, np.where(np.isin(labels, (1, 2)), labels, card.ignore_index))
        assert sum(result.areas.values()) == pytest.approx(np.isin(labels, (1, 2)).mean())
    with pytest.raises(CardError, match="no class 'unicorn'; it has "):
        Segmenter(tiny_model, only="unicorn")


def test_other_colours_are_those_of_the_results(tiny_model: Path, ort: Segmenter, photo: Photo) -> None:
    with Segmenter(tiny_model, backend="ort", palette="1=1,2,3") as segmenter:
        result = segmenter(photo)
    np.testing.assert_array_equal(result.labels, ort(photo).labels)
    assert (result.color()[result.labels == 1] == (1, 2, 3)).all()
    assert result.card.palette[2:] == ort.card.palette[2:]


def test_labels_are_tidied_up_before_classes_are_left_out(tiny_model: Path, ort: Segmenter, photo: Photo) -> None:
    post = PostProcess(min_area_px=60)
    tidy = post.apply(ort(photo).labels, ort.card)
    assert (tidy != ort(photo).labels).any()
    with Segmenter(tiny_model, backend="ort", post=post, only=[ort.card.class_names[1]]) as segmenter:
        np.testing.assert_array_equal(segmenter(photo).labels, np.where(tidy == 1, 1, ort.card.ignore_index))


def test_labels_are_brought_to_size_where_that_is_asked_for(tiny_model: Path, ort: Segmenter, photo: Photo) -> None:
    with Segmenter(tiny_model, backend="ort", upscale="labels") as segmenter:
        coarse, smooth = segmenter(photo), ort(photo)
        assert segmenter.describe()["upscale"] == "labels"
    assert coarse.logits is not None
    small = labels_from_logits(coarse.logits, (48, 64), coarse.card)
    assert coarse.labels.shape == smooth.labels.shape == (90, 120)
    assert (coarse.labels != smooth.labels).any()
    rows, columns = (((np.arange(n) + 0.5) * share).astype(int) for n, share in ((90, 48 / 90), (120, 64 / 120)))
    assert (coarse.labels == small[rows][:, columns]).mean() > 0.95  # ties of nearest pixels go either way


def test_a_graph_of_labels_says_that_labels_are_brought_to_size(tiny_labels_model: Path) -> None:
    with Segmenter(tiny_labels_model, backend="ort", upscale="logits") as segmenter:
        assert segmenter.describe()["upscale"] == "labels"


def test_pictures_larger_than_a_tile_are_cut_up_and_others_are_not(open_model: Path, photo: Photo) -> None:
    engine = Counting(open_model, read_card(open_model))
    arguments: dict[str, Any] = {"backend": engine, "card": read_card(open_model), "overlap": 0.25, "batch": 2}
    with Segmenter(open_model, tile=(48, 64), **arguments) as segmenter:
        small = segmenter(photo[:40, :64])
        assert engine.shapes == [(1, 3, 48, 64)]
        assert small.logits is not None
        assert small.logits.shape == (6, 48, 64)
        large = segmenter(photo)
        assert large.logits is not None
        assert large.logits.shape == (6, 90, 120)
        assert [shape[0] for shape in engine.shapes[1:]] == [2, 2, 2, 2, 1]  # 3 × 3 tiles
        assert {shape[1:] for shape in engine.shapes} == {(3, 48, 64)}
        described = segmenter.describe()
        assert (described["tile"], described["tile_overlap"]) == ([48, 64], 0.25)
    with Segmenter(open_model, backend="ort") as whole:
        np.testing.assert_array_equal(whole(photo[:40, :64]).labels, small.labels)


def test_a_stream_gives_a_graph_whole_batches(open_model: Path, photo: Photo) -> None:
    engine = Counting(open_model, read_card(open_model))
    with Segmenter(open_model, backend=engine, card=read_card(open_model), batch=3) as segmenter:
        results = list(segmenter.stream(photos(photo, 7)))
        assert sum(shape[0] for shape in engine.shapes) == 7
        assert max(shape[0] for shape in engine.shapes) == 3
        for result, picture in zip(results, photos(photo, 7), strict=True):
            alone = segmenter(picture)
            assert (result.labels == alone.labels).mean() > 0.999
        assert segmenter.describe()["batch"] == 3


def test_one_bad_picture_of_a_batch_does_not_take_the_others_with_it(open_model: Path, photo: Photo) -> None:
    errors: list[Any] = []
    pictures: list[ImageSource] = [photo, np.zeros((4, 4, 3), np.float32), photo, photo]
    with Segmenter(open_model, backend="ort", batch=4) as segmenter:
        results = list(segmenter.stream(pictures, on_error=lambda tag, error: errors.append(tag)))
    assert ([result.tag for result in results], errors) == ([0, 2, 3], [1])


def test_a_batch_needs_a_graph_that_takes_one(tiny_model: Path) -> None:
    with pytest.raises(ModelError, match="takes one picture at a time; export it with --dynamic batch"):
        Segmenter(tiny_model, backend="ort", batch=2)


def test_pictures_of_more_pixels_than_allowed_are_refused(tiny_model: Path, photo: Photo, tmp_path: Path) -> None:
    PillowImage.fromarray(photo).save(tmp_path / "a.png")
    with Segmenter(tiny_model, backend="ort", max_pixels=90 * 120 - 1) as segmenter:
        with pytest.raises(ImageError, match=r"a\.png: 120×90 .*--max-pixels 10799"):
            segmenter(tmp_path / "a.png")
        segmenter(photo[:-1])


def test_an_engine_in_a_process_of_its_own_says_the_same_and_goes_with_the_segmenter(
    tiny_model: Path, ort: Segmenter, photo: Photo
) -> None:
    with Segmenter(tiny_model, backend="ort", device="cpu", isolate=True) as segmenter:
        assert "isolated" in str(segmenter.info)
        np.testing.assert_array_equal(segmenter(photo).labels, ort(photo).labels)
    with pytest.raises(BackendError, match="closed"):
        segmenter(photo)


@pytest.mark.extras
@pytest.mark.parametrize(
    "misfit", [{"only": "unicorn"}, {"palette": "nonsense"}, {"size": (64, 64)}, {"overlap": 0.5}, {"batch": 2}]
)
def test_what_does_not_fit_the_model_leaves_no_engine_behind(
    tiny_model: Path, misfit: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Counting] = []

    def load(name: str, model: Path, card: ModelCard, device: str, options: EngineOptions) -> Counting:
        opened.append(Counting(model, card))
        return opened[0]

    monkeypatch.setattr("segship.runtime.segmenter.load_backend", load)
    with pytest.raises(SegshipError):
        Segmenter(tiny_model, **misfit)
    assert [engine.is_closed for engine in opened] == [True]


def test_an_engine_runs_by_the_options_it_is_given(tiny_model: Path, ort: Segmenter, photo: Photo) -> None:
    options = EngineOptions(threads=2, streams=2)
    with Segmenter(tiny_model, backend="ort", device="cpu", options=options) as segmenter:
        assert (segmenter.info.threads, segmenter.info.streams) == (2, 2)
        assert (segmenter.crew.runs, segmenter.crew.keep_for_network) == (2, 0)
        for result, picture in zip(segmenter.stream(photos(photo, 6)), photos(photo, 6), strict=True):
            np.testing.assert_array_equal(result.labels, ort(picture).labels)
    with pytest.raises(BackendError, match="the opencv backend has no option graph_optimization"):
        Segmenter(tiny_model, backend="opencv", options=EngineOptions(graph_optimization="none"))


def test_a_segmenter_goes_to_another_process_as_what_it_was_made_of(open_model: Path, photo: Photo) -> None:
    made: dict[str, Any] = {"tile": (48, 64), "overlap": 0.5, "only": "1,2", "palette": "voc"}
    with Segmenter(open_model, backend="ort", post=PostProcess(open_px=1), convert=["grey"], **made) as segmenter:
        expected, packed = segmenter(photo), pickle.dumps(segmenter)
    with pickle.loads(packed) as copy:
        assert copy.describe() == segmenter.describe()
        ours, theirs = segmenter.processing, copy.processing
        assert (theirs.post, theirs.only, theirs.convert) == (ours.post, ours.only, ours.convert)
        result = copy(photo)
    np.testing.assert_array_equal(result.labels, expected.labels)
    np.testing.assert_array_equal(result.color(), expected.color())


def test_a_segmenter_of_a_loaded_engine_is_not_pickled(open_model: Path) -> None:
    with Segmenter(open_model, backend="ort") as segmenter:
        other = segmenter.at_size((64, 64))
        with pytest.raises(ModelError, match="cannot be pickled; give the engine's name"):
            pickle.dumps(other)


@pytest.mark.parametrize(
    ("arguments", "shape"),
    [
        ({}, (1, 3, 48, 64)),
        ({"batch": 3}, (3, 3, 48, 64)),
        ({"tile": (64, 64)}, (1, 3, 64, 64)),
        ({"size": (32, 64)}, (1, 3, 32, 64)),
    ],
)
def test_warming_up_runs_the_network_as_pictures_will(
    open_model: Path, arguments: dict[str, Any], shape: tuple[int, ...]
) -> None:
    card = read_card(open_model)
    engine = Counting(open_model, card)
    with Segmenter(open_model, backend=engine, card=card, **arguments) as segmenter:
        segmenter.warmup(2)
    assert engine.shapes == [shape] * 2


def test_every_form_of_model_can_be_warmed_up(engine: str, conv: Callable[..., Path]) -> None:
    pixels = {"input_form": "pixels", "head": "labels", "output_name": "labels"}
    for fields in ({}, pixels, pixels | {"frame": (24, 32)}, {"tile_overlap": 0.5}):
        with Segmenter(conv(**fields), backend=engine) as segmenter:
            segmenter.warmup()


def test_several_threads_may_share_a_segmenter(ort: Segmenter, photo: Photo) -> None:
    pictures = photos(photo, 8)
    expected = [ort(picture).labels for picture in pictures]
    with ThreadPoolExecutor(4) as pool:
        for result, labels in zip(pool.map(ort, pictures), expected, strict=True):
            np.testing.assert_array_equal(result.labels, labels)
