import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image as PillowImage

from segship.runtime.card import FORMAT_VERSION, ModelCard
from segship.runtime.certificate import Certificate
from segship.runtime.model_file import read_card
from segship.runtime.segmenter import Segmenter

Run = Callable[..., tuple[int, str, str]]
Photo = NDArray[np.uint8]
ENGINES = ["ort", "opencv"]
WITHOUT_GPU = pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="this machine has a GPU")
MAIN = "from segship.runtime.cli import main; main()"
HEAVY_AFTER_HELP = """
import sys
sys.argv = ["seg-infer", "--help"]
from segship.runtime.cli import main
try:
    main()
except SystemExit as stopped:
    heavy = {"numpy", "cv2", "PIL", "torch", "onnxruntime", "onnx", "rich"} & set(sys.modules)
    sys.exit(f"status {stopped.code}, imported {sorted(heavy)}")
"""


@pytest.fixture
def pictures(photo: Photo, tmp_path: Path) -> Path:
    """A folder: a.png, b.jpg, sub/c.png, and a text that is no picture."""
    root = tmp_path / "pictures"
    (root / "sub").mkdir(parents=True)
    PillowImage.fromarray(photo).save(root / "a.png")
    PillowImage.fromarray(photo[:50]).save(root / "b.jpg")
    PillowImage.fromarray(photo[:, :70]).save(root / "sub" / "c.png")
    (root / "notes.txt").write_text("no picture")
    return root


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def size_of(path: Path | str) -> tuple[int, int]:
    """Width and height of a picture."""
    with PillowImage.open(path) as image:
        return image.size


def one_error(finished: tuple[int, str, str], status: int = 1) -> str:
    """Check that a run ended in one line; return it."""
    assert finished[0] == status, finished
    assert finished[1] == ""
    assert finished[2].startswith("error: ")
    assert finished[2].count("\n") == 1
    return finished[2]


@pytest.mark.parametrize("engine", ENGINES)
def test_a_folder_becomes_a_tree_of_masks_and_overlays(
    infer: Run, tiny_model: Path, pictures: Path, out: Path, engine: str
) -> None:
    status, text, err = infer(tiny_model, pictures, "--out", out, "--backend", engine)
    assert (status, err) == (0, "")
    assert files(out) == [
        "mask/a.png",
        "mask/b.png",
        "mask/classes.json",
        "mask/sub/c.png",
        "overlay/a.png",
        "overlay/b.png",
        "overlay/sub/c.png",
    ]
    lines = text.splitlines()
    assert lines[0].startswith(f"unet 48×64, 6 classes, by {engine} (")
    assert [line.split("  ")[:2] for line in lines[1:4]] == [
        [str(pictures / "a.png"), "120×90"],
        [str(pictures / "b.jpg"), "120×50"],
        [str(pictures / "sub" / "c.png"), "70×90"],
    ]
    assert lines[4].startswith("3 pictures in ")
    with Segmenter(tiny_model, backend=engine) as segmenter:
        for name, source in (("a", "a.png"), ("b", "b.jpg"), ("sub/c", "sub/c.png")):
            result = segmenter(pictures / source)
            with PillowImage.open(out / "mask" / f"{name}.png") as mask:
                assert mask.mode == "P"
                np.testing.assert_array_equal(np.asarray(mask), result.labels)
            overlay = np.asarray(PillowImage.open(out / "overlay" / f"{name}.png"))
            np.testing.assert_array_equal(overlay, result.overlay(0.5))


def test_classes_lie_beside_the_masks(infer: Run, tiny_model: Path, pictures: Path, out: Path) -> None:
    infer(tiny_model, pictures / "a.png", "--out", out)
    card = read_card(tiny_model)
    rows = json.loads((out / "mask" / "classes.json").read_text("utf-8"))
    assert [row["id"] for row in rows] == list(range(6))
    assert tuple(row["name"] for row in rows) == card.class_names
    assert tuple(tuple(row["color"]) for row in rows) == card.palette


def test_a_bad_picture_is_skipped_and_the_rest_is_done(infer: Run, tiny_model: Path, pictures: Path, out: Path) -> None:
    bad = pictures / "b0.jpg"
    bad.write_bytes((pictures / "b.jpg").read_bytes()[:-600])
    status, text, err = infer(tiny_model, pictures, "--out", out)
    assert status == 3
    assert err.startswith(f"skipped: {bad}: damaged picture (")
    assert err.count("\n") == 1
    assert text.splitlines()[-1].startswith("3 pictures, 1 skipped in ")
    assert [name for name in files(out) if name.startswith("mask")] == [
        "mask/a.png",
        "mask/b.png",
        "mask/classes.json",
        "mask/sub/c.png",
    ]


def test_a_json_document_lists_what_was_done_and_what_was_skipped(
    infer: Run, tiny_model: Path, pictures: Path, out: Path
) -> None:
    bad = pictures / "a0.png"
    bad.write_bytes((pictures / "a.png").read_bytes()[:-600])
    status, text, err = infer(tiny_model, pictures, "--out", out, "--json")
    document = json.loads(text)
    assert status == 3
    assert err.startswith("skipped: ")
    assert [entry["source"] for entry in document["skipped"]] == [str(bad)]
    assert "truncated" in document["skipped"][0]["error"]
    assert [Path(entry["source"]).name for entry in document["images"]] == ["a.png", "b.jpg", "c.png"]
    first = document["images"][0]
    assert (first["height"], first["width"]) == (90, 120)
    assert sum(area["share"] for area in first["areas"].values()) == pytest.approx(1)
    assert first["outputs"] == {"mask": str(out / "mask" / "a.png"), "overlay": str(out / "overlay" / "a.png")}
    assert document["classes"] == list(read_card(tiny_model).class_names)
    assert document["engine"]["device"] == "cpu"


def _png(picture: NDArray[Any]) -> Callable[[Path], None]:
    return lambda path: PillowImage.fromarray(picture).save(path)


NOISE = np.random.default_rng(0).integers(0, 256, (40, 50, 4), np.uint8)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("grey.png", _png(NOISE[..., 0])),
        ("one pixel.png", _png(NOISE[:1, :1, :3])),
        ("one bit.png", lambda path: PillowImage.fromarray(NOISE[..., 0] > 99).save(path)),
        ("palette.png", lambda path: PillowImage.fromarray(NOISE[..., :3]).quantize(20).save(path)),
        ("opaque.png", _png(np.dstack([NOISE[..., :3], np.full((40, 50), 255, np.uint8)]))),
        ("cmyk.jpg", lambda path: PillowImage.fromarray(NOISE[..., :3]).convert("CMYK").save(path)),
        ("Straße 道路.PNG", lambda path: PillowImage.fromarray(NOISE[..., :3]).save(path)),
    ],
)
def test_what_loses_nothing_is_read_without_a_word(
    infer: Run, tiny_model: Path, tmp_path: Path, out: Path, name: str, write: Callable[[Path], None]
) -> None:
    write(tmp_path / name)
    status, text, err = infer(tiny_model, tmp_path / name, "--out", out)
    assert (status, err) == (0, "")
    with (
        PillowImage.open(tmp_path / name) as picture,
        PillowImage.open(out / "mask" / f"{Path(name).stem}.png") as mask,
    ):
        assert mask.size == picture.size
        assert f"{name}  {picture.size[0]}×{picture.size[1]}" in text


def test_the_mask_of_a_turned_photo_is_upright(infer: Run, tiny_model: Path, tmp_path: Path, out: Path) -> None:
    exif = PillowImage.Exif()
    exif[0x0112] = 6
    PillowImage.fromarray(NOISE[..., :3]).save(tmp_path / "turned.jpg", exif=exif)
    assert infer(tiny_model, tmp_path / "turned.jpg", "--out", out)[0] == 0
    assert size_of(out / "mask" / "turned.png") == (40, 50)


@pytest.mark.parametrize(
    ("conversion", "name", "write"),
    [
        ("alpha", "see-through.png", _png(NOISE)),
        (
            "alpha",
            "palette.png",
            lambda path: PillowImage.fromarray(NOISE[..., 0]).convert("P").save(path, transparency=3),
        ),
        ("depth", "grey16.png", _png(NOISE[..., 0].astype(np.uint16) * 250)),
        ("depth", "grey16.tif", _png(NOISE[..., 0].astype(np.uint16) * 250)),
    ],
)
def test_what_loses_something_is_skipped_until_it_is_asked_for(
    infer: Run, tiny_model: Path, tmp_path: Path, out: Path, conversion: str, name: str, write: Callable[[Path], None]
) -> None:
    path = tmp_path / name
    write(path)
    status, _, err = infer(tiny_model, path, "--out", out)
    assert status == 3
    assert err.startswith(f"skipped: {path}: ")
    assert err.endswith(f"--convert {conversion}\n")
    assert infer(tiny_model, path, "--out", out, "--convert", conversion)[::2] == (0, "")


def test_16_bit_colour_is_not_quantised_in_silence(
    infer: Run,
    tiny_model: Path,
    tmp_path: Path,
    out: Path,
    write_deep_png: Callable[..., Path],
    write_deep_tiff: Callable[..., Path],
) -> None:
    pixels = np.random.default_rng(0).integers(0, 65536, (40, 50, 3)).astype(np.uint16)
    paths = [write_deep_png(tmp_path / "png.png", pixels), write_deep_tiff(tmp_path / "tif.tif", pixels)]
    status, _, err = infer(tiny_model, *paths, "--out", out)
    assert status == 3
    assert err.count("--convert depth") == 2
    assert infer(tiny_model, *paths, "--out", out, "--convert", "depth")[0] == 0


def test_a_grey_network_takes_grey_and_says_how_to_give_it_colour(
    infer: Run, grey_models: dict[str, Path], tmp_path: Path, out: Path
) -> None:
    PillowImage.fromarray(NOISE[..., 0].astype(np.uint16) * 250).save(tmp_path / "grey16.png")
    PillowImage.fromarray(NOISE[..., 0]).save(tmp_path / "grey8.png")
    PillowImage.fromarray(NOISE[..., :3]).save(tmp_path / "color.png")
    assert infer(grey_models["uint16"], tmp_path / "grey16.png", tmp_path / "grey8.png", "--out", out)[::2] == (0, "")
    status, _, err = infer(grey_models["uint16"], tmp_path / "color.png", "--out", out)
    assert (status, err.endswith("--convert grey\n")) == (3, True)
    arguments = (grey_models["uint8"], tmp_path, "--out", out, "--overwrite", "--convert", "grey, depth")
    assert infer(*arguments)[::2] == (0, "")


def test_a_picture_that_is_a_text_is_said_to_be_none(infer: Run, tiny_model: Path, tmp_path: Path, out: Path) -> None:
    (tmp_path / "notes.jpg").write_text("this is a text")
    status, _, err = infer(tiny_model, tmp_path / "notes.jpg", "--out", out)
    assert status == 3
    assert (
        err
        == f"skipped: {tmp_path / 'notes.jpg'}: no picture that can be read (its content is of no known image format)\n"
    )


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".webp"])
@pytest.mark.parametrize("kept", [0.02, 0.1, 0.9])
def test_a_truncated_picture_is_one_line(
    infer: Run, tiny_model: Path, tmp_path: Path, out: Path, suffix: str, kept: float
) -> None:
    path = tmp_path / f"cut{suffix}"
    exif = PillowImage.Exif()
    exif[0x0112] = 6
    PillowImage.fromarray(NOISE[..., :3]).save(path, exif=exif)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * kept)])
    status, _, err = infer(tiny_model, path, "--out", out)
    assert (status, err.count("\n")) == (3, 1)
    assert err.startswith(f"skipped: {path}: ")


def test_an_empty_folder_and_a_missing_path_are_errors(infer: Run, tiny_model: Path, tmp_path: Path, out: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "empty holds no pictures (.bmp, " in one_error(infer(tiny_model, tmp_path / "empty", "--out", out))
    assert "missing: no such file or folder" in one_error(infer(tiny_model, tmp_path / "missing", "--out", out))
    assert not out.exists()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("content", ["missing", "empty", "text", "random", "truncated"])
@pytest.mark.parametrize("with_card_file", [False, True])
def test_a_file_that_is_no_model_is_one_line(
    infer: Run,
    tiny_model: Path,
    pictures: Path,
    tmp_path: Path,
    out: Path,
    engine: str,
    content: str,
    with_card_file: bool,
) -> None:
    path = tmp_path / "model.onnx"
    texts = {"empty": b"", "text": b"a text\n" * 30, "random": np.random.default_rng(0).bytes(3000)}
    if content != "missing":
        path.write_bytes(texts.get(content, tiny_model.read_bytes()[:100_000]))
    (tmp_path / "card.json").write_text(read_card(tiny_model).to_json(), encoding="utf-8")
    card = ["--card", tmp_path / "card.json"] if with_card_file else []
    line = one_error(infer(path, pictures, "--out", out, "--backend", engine, *card))
    assert str(path) in line
    assert ("No such file" if content == "missing" else "no ONNX file") in line
    assert not out.exists()


@pytest.mark.parametrize("engine", ENGINES)
def test_a_model_without_card_works_with_a_card_file(
    infer: Run,
    tiny_model: Path,
    pictures: Path,
    tmp_path: Path,
    out: Path,
    engine: str,
    with_card: Callable[..., Path],
) -> None:
    bare = with_card(tiny_model, None)
    line = one_error(infer(bare, pictures, "--out", out, "--backend", engine))
    assert "carries no segship card" in line
    assert "--card FILE" in line
    card = tmp_path / "card.json"
    card.write_text(read_card(tiny_model).to_json(indent=2), encoding="utf-8")
    assert infer(bare, pictures, "--out", out, "--backend", engine, "--card", card)[::2] == (0, "")
    assert "mask/sub/c.png" in files(out)


def test_a_card_file_that_cannot_be_read_is_one_line(
    infer: Run, tiny_model: Path, pictures: Path, tmp_path: Path, out: Path
) -> None:
    card = tmp_path / "card.json"
    for content, words in ((None, "cannot be read"), (b"{", "no valid JSON"), (b"\xff\xfe", "cannot be read")):
        if content is not None:
            card.write_bytes(content)
        line = one_error(infer(tiny_model, pictures, "--out", out, "--card", card))
        assert line.startswith(f"error: {card}: ")
        assert words in line


def test_a_card_of_a_newer_version_says_to_upgrade(
    infer: Run, tiny_model: Path, pictures: Path, out: Path, with_card: Callable[..., Path]
) -> None:
    newer = json.loads(read_card(tiny_model).to_json()) | {"format_version": FORMAT_VERSION + 1}
    line = one_error(infer(with_card(tiny_model, json.dumps(newer)), pictures, "--out", out))
    assert f"format version {FORMAT_VERSION + 1}; this segship reads up to {FORMAT_VERSION}; upgrade segship" in line


@pytest.mark.parametrize("engine", ENGINES)
def test_a_card_that_contradicts_the_graph_is_one_line(
    infer: Run, tiny_model: Path, pictures: Path, out: Path, engine: str, with_card: Callable[..., Path]
) -> None:
    card = read_card(tiny_model)
    size = dataclasses.replace(card, preprocess=dataclasses.replace(card.preprocess, size=(32, 32)))
    classes = dataclasses.replace(card, class_names=card.class_names[:4], palette=card.palette[:4])
    for other, words in ((size, "(1, 3, 32, 32)"), (classes, "(1, 4, 48, 64)")):
        line = one_error(infer(with_card(tiny_model, other), pictures, "--out", out, "--backend", engine))
        assert words in line
    assert not out.exists()


@pytest.mark.parametrize("engine", ENGINES)
def test_a_model_that_returns_no_numbers_ends_the_run(
    infer: Run, nan_model: Path, pictures: Path, out: Path, engine: str
) -> None:
    status, _, err = infer(nan_model, pictures, "--out", out, "--backend", engine)
    assert status == 1
    assert err.startswith("error: the network returned values that are no numbers")
    assert err.count("\n") == 1
    assert not [name for name in files(out) if name.endswith(".png")]


@WITHOUT_GPU
@pytest.mark.parametrize("engine", ENGINES)
def test_cuda_is_an_error_where_there_is_none(
    infer: Run, tiny_model: Path, pictures: Path, out: Path, engine: str
) -> None:
    line = one_error(infer(tiny_model, pictures, "--out", out, "--backend", engine, "--device", "cuda"))
    assert "cuda was asked for" in line
    assert "--device cpu" in line
    assert not out.exists()


@pytest.mark.parametrize("engine", ENGINES)
def test_an_unknown_device_is_an_error(infer: Run, tiny_model: Path, pictures: Path, engine: str) -> None:
    line = one_error(infer(tiny_model, pictures, "--backend", engine, "--device", "nonsense"))
    assert f"the {engine} backend has no device 'nonsense'; expected auto, cpu or cuda" in line


def test_an_unknown_backend_is_an_error(infer: Run, tiny_model: Path, pictures: Path) -> None:
    line = one_error(infer(tiny_model, pictures, "--backend", "tflite"))
    assert "no backend is called 'tflite'; known are opencv, openvino, ort, tensorrt, torch" in line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--save", "masks"], "--save: 'masks' is not known; known are mask, color, overlay"),
        (["--convert", "all"], "--convert: 'all' is not known; known are depth, grey, alpha"),
        (["--alpha", "2"], "'--alpha'"),
        (["--colour"], "No such option"),
        (["--min-area", "-1"], "'--min-area'"),
        (["--overlap", "1"], "'--overlap'"),
        (["--limit", "0"], "'--limit'"),
        (["--threads", "0"], "'--threads'"),
        (["--tile", "0x64"], "'0x64' is no size; expected HEIGHTxWIDTH"),
        (["--size", "1x2x3"], "'1x2x3' is no size"),
        (["--max-pixels", "1.5M"], "'1.5M' is no number of pixels"),
        (["--upscale", "both"], "'both' is not one of 'logits', 'labels'"),
        (["--set", "colour=red"], "--set 'colour=red': expected KEY=VALUE, with one of the keys threads, "),
        (["--set", "alpha=7"], "alpha is 7.0; expected 0…1"),
        (["--json", "--jsonl"], "give one of them"),
        (["--json", "-q"], "give one of them"),
    ],
)
def test_bad_use_is_status_2(infer: Run, tiny_model: Path, pictures: Path, arguments: list[str], words: str) -> None:
    status, text, err = infer(tiny_model, pictures, *arguments)
    assert (status, text) == (2, "")
    assert words in err


def test_a_missing_argument_is_status_2(infer: Run, tiny_model: Path) -> None:
    for arguments, words in (([tiny_model], "Missing argument 'SOURCE...'"), ([], "Missing argument 'MODEL'")):
        status, text, err = infer(*arguments)
        assert (status, text) == (2, "")
        assert words in err


def test_rarer_knobs_are_listed_without_a_model(infer: Run) -> None:
    status, text, err = infer("--set", "help")
    assert (status, err) == (0, "")
    assert "min_area_px=int  [default: 0]" in text.splitlines()


def test_pictures_that_differ_in_suffix_only_do_not_share_an_output(
    infer: Run, tiny_model: Path, photo: Photo, tmp_path: Path, out: Path
) -> None:
    for name, width in (("a.png", 30), ("a.jpg", 40), ("a.jpg.png", 50)):
        PillowImage.fromarray(photo[:, :width]).save(tmp_path / name)
    sources = sorted(tmp_path.glob("a*"))
    status, text, _ = infer(tiny_model, *sources, "--out", out, "--save", "mask", "--json")
    assert status == 0
    for entry in json.loads(text)["images"]:
        assert size_of(entry["outputs"]["mask"]) == (entry["width"], entry["height"])
    assert len(files(out)) == 1 + len(sources)


def test_outputs_are_not_overwritten_unless_it_is_asked_for(
    infer: Run, tiny_model: Path, pictures: Path, out: Path
) -> None:
    assert infer(tiny_model, pictures, "--out", out)[0] == 0
    (out / "mask" / "a.png").write_text("precious")
    (out / "mask" / "b.png").unlink()
    line = one_error(infer(tiny_model, pictures, "--out", out))
    assert "is there already (5 of 6 outputs are); add --overwrite" in line
    assert (out / "mask" / "a.png").read_text() == "precious"
    assert not (out / "mask" / "b.png").exists()
    assert infer(tiny_model, pictures, "--out", out, "--overwrite")[0] == 0
    assert size_of(out / "mask" / "a.png") == (120, 90)


def test_outputs_inside_the_source_are_no_pictures_of_the_next_run(
    infer: Run, tiny_model: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(pictures)
    for extra in ([], ["--overwrite"]):
        status, text, _ = infer(tiny_model, ".", "--out", "segmented", *extra, "--json")
        assert status == 0
        assert [entry["source"] for entry in json.loads(text)["images"]] == ["a.png", "b.jpg", "sub/c.png"]


def test_files_above_are_written_into_the_folder_of_the_outputs(
    infer: Run, tiny_model: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(pictures / "sub")
    assert infer(tiny_model, "../a.png", "c.png", "--out", "out", "--save", "mask,color")[0] == 0
    assert files(Path("out")) == ["color/a.png", "color/sub/c.png", "mask/a.png", "mask/classes.json", "mask/sub/c.png"]


@pytest.mark.parametrize("kinds", ["mask,overlay", "overlay"])
def test_a_file_in_the_place_of_the_outputs_is_one_error(
    infer: Run, tiny_model: Path, pictures: Path, out: Path, kinds: str
) -> None:
    out.write_text("precious")
    status, _, err = infer(tiny_model, pictures, "--out", out, "--save", kinds)
    assert status == 1
    assert err.startswith(f"error: cannot write {out}")
    assert err.count("\n") == 1
    assert out.read_text() == "precious"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_is_one_error(infer: Run, tiny_model: Path, pictures: Path, out: Path) -> None:
    out.mkdir(mode=0o500)
    assert "Permission denied" in one_error(infer(tiny_model, pictures, "--out", out))


def test_what_is_saved_is_chosen(infer: Run, tiny_model: Path, pictures: Path, out: Path) -> None:
    assert infer(tiny_model, pictures / "a.png", "--out", out, "--save", "")[0] == 0
    assert not out.exists()
    assert infer(tiny_model, pictures / "a.png", "--out", out, "--save", " overlay , color", "--alpha", "1")[0] == 0
    assert files(out) == ["color/a.png", "overlay/a.png"]
    assert (out / "color" / "a.png").read_bytes() == (out / "overlay" / "a.png").read_bytes()


def test_jsonl_prints_a_document_a_line(infer: Run, tiny_model: Path, pictures: Path, out: Path) -> None:
    (pictures / "b.jpg").write_text("no picture")
    status, text, err = infer(tiny_model, pictures, "--out", out, "--jsonl")
    job, *pictures_told, end = [json.loads(line) for line in text.splitlines()]
    assert (status, err.count("\n")) == (3, 1)
    assert job["job"]["classes"] == list(read_card(tiny_model).class_names)
    assert [Path(told["source"]).name for told in pictures_told] == ["a.png", "b.jpg", "c.png"]
    assert ["error" in told for told in pictures_told] == [False, True, False]
    assert all(Path(path).exists() for path in pictures_told[2]["outputs"].values())
    assert (end["end"]["done"], end["end"]["skipped"], end["end"]["left_out"]) == (2, 1, 0)


def test_a_reader_that_has_gone_ends_the_command_without_a_word(tiny_model: Path, pictures: Path, out: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-c", MAIN, str(tiny_model), str(pictures), "--out", str(out)],
        stdout=write,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (1, b"")


def test_quiet_prints_errors_only(infer: Run, tiny_model: Path, pictures: Path, out: Path) -> None:
    assert infer(tiny_model, pictures, "--out", out, "-q") == (0, "", "")


@pytest.mark.extras
def test_pictures_are_brought_to_the_size_that_is_asked_for(
    infer: Run, write_conv_model: Callable[..., Path], conv_card: ModelCard, pictures: Path, out: Path, tmp_path: Path
) -> None:
    model = write_conv_model(tmp_path / "open.onnx", dataclasses.replace(conv_card, dynamic=("size",)))
    status, text, _ = infer(model, pictures / "a.png", "--out", out, "--save", "mask", "--size", "40x16")
    assert status == 0
    assert text.startswith("network 40×16, 6 classes, by ort")
    with (
        Segmenter(model, backend="ort", size=(40, 16)) as segmenter,
        PillowImage.open(out / "mask/a.png") as mask,
    ):
        np.testing.assert_array_equal(np.asarray(mask), segmenter(pictures / "a.png").labels)
    document = json.loads(infer(model, pictures / "a.png", "--save", "", "--size", "40x16", "--json")[1])
    assert (document["size"], document["dynamic"]) == ([40, 16], ["size"])


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"dynamic": ("size",)}, "sides must be multiples of 8; the next good size is 48×16"),
        ({}, "this model's is fixed at 24×32; export it with --dynamic size"),
    ],
)
def test_a_size_that_the_graph_does_not_take_is_one_line(
    infer: Run,
    write_conv_model: Callable[..., Path],
    conv_card: ModelCard,
    pictures: Path,
    out: Path,
    tmp_path: Path,
    fields: dict[str, Any],
    words: str,
) -> None:
    model = write_conv_model(tmp_path / "model.onnx", dataclasses.replace(conv_card, **fields))
    assert words in one_error(infer(model, pictures, "--out", out, "--size", "42x16"))
    assert not out.exists()


def test_pictures_that_are_no_frames_are_skipped(
    infer: Run, write_conv_model: Callable[..., Path], conv_card: ModelCard, photo: Photo, out: Path, tmp_path: Path
) -> None:
    card = dataclasses.replace(conv_card, frame=(24, 32), input_form="pixels", head="labels", output_name="labels")
    model = write_conv_model(tmp_path / "frames.onnx", card)
    (tmp_path / "frames").mkdir()
    PillowImage.fromarray(photo[:24, :32]).save(tmp_path / "frames/a.png")
    PillowImage.fromarray(photo).save(tmp_path / "frames/b.png")
    status, _, err = infer(model, tmp_path / "frames", "--out", out)
    assert status == 3
    assert err.startswith("skipped: ")
    assert "its 90×120 pixels do not fit a model of 24×32 frames" in err
    assert files(out) == ["mask/a.png", "mask/classes.json", "overlay/a.png"]


def test_a_model_that_runs_unproven_is_a_line_of_warning(
    write_conv_model: Callable[..., Path], conv_card: ModelCard, pictures: Path, out: Path, tmp_path: Path
) -> None:
    certificate = Certificate("0" * 64, "PyTorch", "8 real", 1e-4, 1e-3, ())
    model = write_conv_model(tmp_path / "model.onnx", dataclasses.replace(conv_card, certificate=certificate))
    done = subprocess.run(
        [sys.executable, "-c", MAIN, str(model), str(pictures), "--out", str(out), "-q"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr.startswith(f"warning: {model}: its graph, weights or card were changed since it was proven")
    assert done.stderr.count("\n") == 1


def test_a_network_for_tiles_says_so(infer: Run, tiled_model: Path, pictures: Path, out: Path) -> None:
    status, text, err = infer(tiled_model, pictures, "--out", out)
    assert (status, err) == (0, "")
    assert text.startswith("unet 48×64, tiles of 48×64, 50% overlap, 6 classes, by ")
    document = json.loads(infer(tiled_model, pictures, "--out", out, "--overwrite", "--json")[1])
    assert (document["size"], document["tile_overlap"], document["task"]) == ([48, 64], 0.5, "multiclass")


def test_masks_of_a_binary_network_hold_its_two_classes(
    infer: Run, binary_model: Path, pictures: Path, out: Path
) -> None:
    assert infer(binary_model, pictures, "--out", out)[0] == 0
    rows = json.loads((out / "mask" / "classes.json").read_text("utf-8"))
    assert [(row["id"], row["name"]) for row in rows] == [(0, "rest"), (1, "object")]
    with PillowImage.open(out / "mask" / "a.png") as mask:
        assert set(np.unique(np.asarray(mask))) == {0, 1}


def test_a_checkpoint_runs_with_pytorch(infer: Run, tiny_checkpoint: Path, pictures: Path, out: Path) -> None:
    status, text, err = infer(tiny_checkpoint, pictures, "--out", out, "--backend", "torch")
    assert (status, err) == (0, "")
    assert "by torch (PyTorch " in text


def test_names_that_are_no_unicode_are_written_and_printed(tiny_model: Path, photo: Photo, tmp_path: Path) -> None:
    try:
        PillowImage.fromarray(photo).save(os.fsencode(tmp_path) + b"/caf\xe9.png", "PNG")
    except OSError:
        pytest.skip("this file system takes Unicode names only")
    environment = os.environ | {"PYTHONIOENCODING": "utf-8:strict"}
    done = subprocess.run(
        [sys.executable, "-c", MAIN, tiny_model, tmp_path, "--out", tmp_path / "out"],
        capture_output=True,
        check=False,
        env=environment,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"caf\\xe9.png  120" in done.stdout
    assert os.path.exists(os.fsencode(tmp_path) + b"/out/mask/caf\xe9.png")  # noqa: PTH110


def test_help_imports_no_library_that_takes_time() -> None:
    done = subprocess.run([sys.executable, "-c", HEAVY_AFTER_HELP], capture_output=True, text=True, check=False)
    assert done.stderr == "status 0, imported []\n"
    assert "--backend" in done.stdout
    assert "--overwrite" in done.stdout
