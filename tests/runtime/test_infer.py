import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image as PillowImage

from segship.runtime.card import ModelCard
from segship.runtime.infer import VIDEO
from segship.runtime.model_file import read_card
from segship.runtime.outputs import OUTPUT_KINDS
from segship.runtime.palettes import PALETTES
from segship.runtime.postprocess import PostProcess
from segship.runtime.result import Result
from segship.runtime.segmenter import Segmenter
from segship.runtime.video_writer import VideoWriter

Run = Callable[..., tuple[int, str, str]]
Photo = NDArray[np.uint8]
DEADLINE_S = 60
MAIN = "from segship.runtime.cli import main; main()"


@pytest.fixture
def pictures(photo: Photo, tmp_path: Path) -> Path:
    """A folder: a.png, b.png, c.png, d.png, each with other pixels."""
    root = tmp_path / "pictures"
    root.mkdir()
    for shift, name in enumerate("abcd"):
        PillowImage.fromarray(np.roll(photo, 20 * shift, axis=1)).save(root / f"{name}.png")
    return root


@pytest.fixture
def video(photo: Photo, tmp_path: Path) -> Path:
    """Six frames of 90×120 pixels, ten a second, in a file with a dot in its name."""
    path = tmp_path / "2024.05.mp4"
    with VideoWriter(path, 10.0, (90, 120)) as writer:
        for shift in range(6):
            writer.write(np.roll(photo, 20 * shift, axis=1))
    return path


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def camera(photo: Photo) -> Iterator[str]:
    """A server on this machine that sends JPEGs as fast as they are taken, and its address."""
    file, stop = io.BytesIO(), Event()
    PillowImage.fromarray(photo).save(file, "JPEG")
    head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {file.tell()}\r\n\r\n"
    part = head.encode() + file.getvalue() + b"\r\n"

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
            self.end_headers()
            with contextlib.suppress(OSError):  # the reader has gone
                while not stop.wait(0.005):
                    self.wfile.write(part)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = False
    Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/cam.mjpg"
    stop.set()
    server.shutdown()
    server.server_close()


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def pixels(path: Path | str) -> NDArray[Any]:
    with PillowImage.open(path) as picture:
        return np.asarray(picture)


def frames(path: Path | str) -> list[NDArray[Any]]:
    capture = cv2.VideoCapture(str(path))
    read = []
    while (frame := capture.read())[0]:
        read.append(frame[1])
    return read


def one_error(finished: tuple[int, str, str], status: int = 1) -> str:
    """Check that a run that has not begun ended in an error, and return it."""
    assert finished[0] == status, finished
    assert finished[1] == ""
    assert status == 2 or finished[2].count("\n") == 1
    return finished[2]


def test_a_job_is_gone_on_with_where_it_ended(infer: Run, tiny_model: Path, pictures: Path, out: Path) -> None:
    assert infer(tiny_model, pictures, "--out", out, "--limit", "2")[0] == 0
    assert files(out) == ["mask/a.png", "mask/b.png", "mask/classes.json", "overlay/a.png", "overlay/b.png"]
    (out / "overlay/a.png").unlink()
    (out / "mask/b.png").write_text("left as it is")
    status, text, err = infer(tiny_model, pictures, "--out", out, "--skip-existing", "--json")
    document = json.loads(text)
    assert (status, err) == (0, "")
    assert [Path(entry["source"]).name for entry in document["images"]] == ["a.png", "c.png", "d.png"]
    assert (document["done"], document["left_out"]) == (3, 1)
    assert (out / "mask/b.png").read_text() == "left as it is"
    _, text, _ = infer(tiny_model, pictures, "--out", out, "--skip-existing")
    assert text.splitlines()[-1].startswith("0 pictures, 4 there already in ")


def test_going_on_with_a_job_does_not_mix_the_classes_of_two(
    infer: Run, tiny_model: Path, pictures: Path, out: Path
) -> None:
    infer(tiny_model, pictures, "--out", out)
    before = (out / "mask/classes.json").read_bytes()
    line = one_error(infer(tiny_model, pictures, "--out", out, "--skip-existing", "--palette", "1=1,2,3"))
    assert "classes.json names other classes than this model has; add --overwrite" in line
    assert (out / "mask/classes.json").read_bytes() == before


def test_a_video_is_a_folder_of_frames_and_a_video(infer: Run, tiny_model: Path, video: Path, out: Path) -> None:
    status, text, err = infer(tiny_model, video, "--out", out, "--save", "mask,overlay,video", "--json")
    assert (status, err) == (0, "")
    names = [f"2024.05/frame-{number:06d}.png" for number in range(1, 7)]
    assert files(out / "mask") == [*names, "classes.json"]
    assert files(out / "video") == ["2024.05.mp4"]
    entries = json.loads(text)["images"]
    assert [entry["time_s"] for entry in entries] == pytest.approx([number / 10 for number in range(6)])
    assert [entry["tag"] for entry in entries] == [name.removesuffix(".png") for name in names]
    written = frames(out / "video/2024.05.mp4")
    assert len(written) == 6
    assert cv2.VideoCapture(str(out / "video/2024.05.mp4")).get(cv2.CAP_PROP_FPS) == pytest.approx(10)
    for name, frame in zip(names, written, strict=True):  # the video's codec loses a little
        assert np.abs(pixels(out / "overlay" / name).astype(int) - frame[..., ::-1]).mean() < 12
    assert np.abs(written[0].astype(int) - written[3]).mean() > 20


def test_frames_of_a_video_have_one_size_with_a_legend_too(
    infer: Run, tiny_model: Path, video: Path, out: Path
) -> None:
    assert infer(tiny_model, video, "--out", out, "--save", "video", "--legend", "-q") == (0, "", "")
    (frame, *others) = frames(out / "video/2024.05.mp4")
    assert frame.shape[0] > 90
    assert {other.shape for other in others} == {frame.shape}


def test_a_video_is_not_written_over_unless_it_is_asked_for(
    infer: Run, tiny_model: Path, video: Path, out: Path
) -> None:
    arguments = (tiny_model, video, "--out", out, "--save", "video", "-q")
    assert infer(*arguments, "--limit", "2")[0] == 0
    assert "2024.05.mp4 is there already; add --overwrite" in one_error(infer(*arguments))
    assert len(frames(out / "video/2024.05.mp4")) == 2
    assert infer(*arguments, "--overwrite")[0] == 0
    assert len(frames(out / "video/2024.05.mp4")) == 6


def test_a_video_is_written_of_one_video_only_and_whole(
    infer: Run, tiny_model: Path, pictures: Path, video: Path, out: Path
) -> None:
    for sources in ([pictures], [video, pictures / "a.png"]):
        line = one_error(infer(tiny_model, *sources, "--out", out, "--save", VIDEO))
        assert "--save video is for one video or stream" in line
    line = one_error(infer(tiny_model, video, "--out", out, "--save", VIDEO, "--skip-existing"), status=2)
    assert "leave out --skip-existing" in line
    assert not out.exists()


def test_pictures_come_from_stdin(
    infer: Run, tiny_model: Path, pictures: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded = b"".join((pictures / f"{name}.png").read_bytes() for name in "ab")
    for again in (False, True):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(encoded)))
        status, text, err = infer(tiny_model, "-", "--out", out, "--save", "mask", "--jsonl")
        lines = [json.loads(line) for line in text.splitlines()]
        if again:  # of what nobody knows beforehand, it is told when it comes
            assert (status, len(lines)) == (1, 2)
            assert "stdin-000001.png is there already" in err
        else:
            assert (status, [line["source"] for line in lines[1:-1]]) == (0, ["stdin #1", "stdin #2"])
            assert files(out) == ["mask/classes.json", "mask/stdin-000001.png", "mask/stdin-000002.png"]
            with Segmenter(tiny_model, backend="ort") as segmenter:
                np.testing.assert_array_equal(
                    pixels(out / "mask/stdin-000002.png"), segmenter(pictures / "b.png").labels
                )


def test_a_stream_is_told_line_by_line_and_in_the_end_what_was_dropped(
    infer: Run, tiny_model: Path, camera: str, out: Path
) -> None:
    arguments = (tiny_model, camera, "--limit", "8", "--out", out)
    status, text, err = infer(*arguments, "--save", "video,mask", "--jsonl")
    assert (status, err) == (0, "")
    first, *entries, last = [json.loads(line) for line in text.splitlines()]
    assert first["job"]["engine"]["streams"] == 1
    assert len(entries) == 8
    assert [entry["index"] for entry in entries] == list(range(8))
    assert all(abs(entry["captured"] - time.time()) < DEADLINE_S for entry in entries)
    assert all(Path(entry["outputs"]["mask"]).exists() for entry in entries)
    assert (last["end"]["done"], last["end"]["reconnections"]) == (8, 0)
    assert last["end"]["dropped"] >= 0
    (name,) = files(out / "video")
    assert len(frames(out / "video" / name)) == 8
    _, text, _ = infer(*arguments, "--save", "", "--every-frame")
    assert text.splitlines()[8 + 1].startswith("8 pictures, 0 dropped for newer ones in ")


def test_a_stream_has_no_end_at_which_one_document_could_be_printed(
    infer: Run, tiny_model: Path, camera: str, out: Path
) -> None:
    line = one_error(infer(tiny_model, camera, "--out", out, "--json"), status=2)
    assert "take --jsonl" in line
    document = json.loads(infer(tiny_model, camera, "--out", out, "--json", "--limit", "2")[1])
    assert (document["done"], len(document["images"])) == (2, 2)


@pytest.mark.parametrize("flag", ["--latest", "--every-frame"])
def test_pictures_in_files_are_no_live_source(
    infer: Run, tiny_model: Path, pictures: Path, out: Path, flag: str
) -> None:
    assert "only a live source" in one_error(infer(tiny_model, pictures, "--out", out, flag))


def test_it_is_told_of_the_classes_asked_for_only(infer: Run, tiny_model: Path, pictures: Path, out: Path) -> None:
    card = read_card(tiny_model)
    only = card.class_names[1:3]
    kinds = "mask,contours,cutout"
    _, text, _ = infer(
        tiny_model, pictures / "a.png", "--out", out, "--only", ",".join(only), "--json", "--save", kinds
    )
    (entry,) = json.loads(text)["images"]
    assert tuple(entry["areas"]) == only
    with Segmenter(tiny_model, backend="ort") as segmenter:
        labels = segmenter(pictures / "a.png").labels
    mask = pixels(entry["outputs"]["mask"])
    expected = np.where(np.isin(labels, (1, 2)), labels, card.ignore_index)
    np.testing.assert_array_equal(mask, expected)
    assert [entry["areas"][name]["pixels"] for name in only] == [(labels == 1).sum(), (labels == 2).sum()]
    regions = json.loads(Path(entry["outputs"]["contours"]).read_text("utf-8"))["features"]
    assert {region["properties"]["class"] for region in regions} == {name for name in only if name in entry["areas"]}
    opacity = pixels(entry["outputs"]["cutout"])[..., 3]
    assert opacity[np.isin(labels, (1, 2))].mean() > opacity[~np.isin(labels, (1, 2))].mean()


@pytest.mark.parametrize(
    ("only", "words", "status"), [("unicorn", "no class 'unicorn'; it has ", 1), (" , ", "--only names no class", 2)]
)
def test_classes_that_there_are_not_are_an_error(
    infer: Run, tiny_model: Path, pictures: Path, out: Path, only: str, words: str, status: int
) -> None:
    assert words in one_error(infer(tiny_model, pictures, "--out", out, "--only", only), status=status)
    assert not out.exists()


def test_other_colours_are_those_of_all_outputs(infer: Run, tiny_model: Path, pictures: Path, out: Path) -> None:
    assert infer(tiny_model, pictures / "a.png", "--out", out, "--save", "mask,color", "--palette", "voc")[0] == 0
    colors = PALETTES["voc"].palette[:6]
    rows = json.loads((out / "mask/classes.json").read_text("utf-8"))
    assert [tuple(row["color"]) for row in rows] == list(colors)
    np.testing.assert_array_equal(pixels(out / "color/a.png"), np.asarray(colors, np.uint8)[pixels(out / "mask/a.png")])
    assert "'nonsense' is neither a palette (" in one_error(
        infer(tiny_model, pictures, "--out", out, "--palette", "nonsense", "--overwrite")
    )


@pytest.mark.parametrize(
    "arguments", [("--min-area", "40", "--alpha", "0.9"), ("--set", "min_area_px=40", "--set", "alpha=0.9")]
)
def test_a_knob_is_the_same_by_its_option_and_by_its_key(
    infer: Run, tiny_model: Path, pictures: Path, out: Path, arguments: tuple[str, ...]
) -> None:
    assert infer(tiny_model, pictures / "a.png", "--out", out, *arguments)[0] == 0
    with Segmenter(tiny_model, backend="ort", post=PostProcess(min_area_px=40)) as segmenter:
        result = segmenter(pictures / "a.png")
    np.testing.assert_array_equal(pixels(out / "mask/a.png"), result.labels)
    np.testing.assert_array_equal(pixels(out / "overlay/a.png"), result.overlay(0.9))


def test_larger_pictures_are_cut_into_tiles(
    infer: Run, tiny_model: Path, tiny_labels_model: Path, pictures: Path, out: Path
) -> None:
    status, text, _ = infer(tiny_model, pictures / "a.png", "--out", out, "--tile", "48x64", "--overlap", "0.5")
    assert status == 0
    assert text.startswith("unet 48×64, tiles of 48×64, 50% overlap, 6 classes, by ")
    with Segmenter(tiny_model, backend="ort", tile=(48, 64), overlap=0.5) as segmenter:
        np.testing.assert_array_equal(pixels(out / "mask/a.png"), segmenter(pictures / "a.png").labels)
    line = one_error(infer(tiny_model, pictures, "--out", out, "--overlap", "0.5", "--overwrite"))
    assert "give the tiles' size too (--tile)" in line
    line = one_error(infer(tiny_labels_model, pictures, "--out", out, "--tile", "48", "--overwrite"))
    assert "export with --head logits" in line


@pytest.mark.extras
@pytest.mark.parametrize("option", [("--batch", "3"), ("--streams", "2"), ("--threads", "2"), ("--isolate",)])
def test_however_it_runs_the_masks_are_the_same(
    infer: Run, open_model: Path, pictures: Path, tmp_path: Path, option: tuple[str, ...]
) -> None:
    for out, options in (("one", ("--streams", "1")), ("other", option)):
        status, text, err = infer(open_model, pictures, "--out", tmp_path / out, "--device", "cpu", *options, "--json")
        assert (status, err) == (0, "")
    document = json.loads(text)
    if option[0] in ("--threads", "--streams"):  # four pictures are enough for a run on each core
        assert document["engine"]["streams"] == 2
    assert document["batch"] == (3 if option[0] == "--batch" else 1)
    assert [entry["index"] for entry in document["images"]] == [0, 1, 2, 3]
    for name in "abcd":
        one, other = (pixels(tmp_path / out / f"mask/{name}.png") for out in ("one", "other"))
        assert (one == other).mean() > 0.999


@pytest.mark.extras
def test_few_pictures_are_not_divided_among_cores(infer: Run, tiny_model: Path, pictures: Path, out: Path) -> None:
    arguments = ("--out", out, "--device", "cpu", "--threads", "2", "--json", "--overwrite")
    for sources, streams in (([pictures / "a.png"], 1), ([pictures], 2), ([pictures, "--isolate"], 1)):
        document = json.loads(infer(tiny_model, *sources, *arguments)[1])
        assert document["engine"]["streams"] == streams
    document = json.loads(infer(tiny_model, pictures, *arguments, "--backend", "opencv")[1])
    assert document["engine"]["streams"] == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--batch", "2"), "takes one picture at a time; export it with --dynamic batch"),
        (("--streams", "2", "--backend", "opencv"), "use --streams 1, or --backend ort"),
        (("--set", "engine=classic", "--backend", "ort"), "the ort backend has no option engine; leave it out"),
        (("--set", "graph_optimization=all", "--backend", "opencv"), "has no option graph_optimization; leave it out"),
        (("--save", "cutout,probability", "--size", "48"), "fixed at 48×64; export it with --dynamic size"),
        (("--ray", "local", "--save", "video"), "--save video is for one video or stream"),
    ],
)
def test_what_model_or_engine_cannot_do_is_an_error_and_not_left_out(
    infer: Run, tiny_model: Path, pictures: Path, out: Path, arguments: tuple[str, ...], words: str
) -> None:
    assert words in one_error(infer(tiny_model, pictures, "--out", out, *arguments))
    assert not out.exists()


def test_of_labels_no_probabilities_are_saved(infer: Run, tiny_labels_model: Path, pictures: Path, out: Path) -> None:
    line = one_error(infer(tiny_labels_model, pictures, "--out", out, "--save", "probability"))
    assert "this model returns labels" in line
    assert "--head logits" in line
    assert not out.exists()


def test_every_kind_of_output_is_written_and_told_of(infer: Run, binary_model: Path, pictures: Path, out: Path) -> None:
    settings = ("--set", "probabilities=npz", "--set", "contours=coco", "--legend")
    kinds = ",".join(OUTPUT_KINDS)
    status, text, err = infer(binary_model, pictures / "a.png", "--out", out, "--save", kinds, "--json", *settings)
    assert (status, err) == (0, "")
    (entry,) = json.loads(text)["images"]
    assert list(entry["outputs"]) == list(OUTPUT_KINDS)
    assert sorted(entry["outputs"].values()) == [str(out / name) for name in files(out) if "classes" not in name]
    assert [Path(entry["outputs"][kind]).suffix for kind in ("probability", "contours")] == [".npz", ".json"]
    assert pixels(entry["outputs"]["overlay"]).shape[0] > pixels(entry["outputs"]["mask"]).shape[0] == 90


def test_labels_are_brought_to_size_where_that_is_asked_for(
    infer: Run, tiny_model: Path, pictures: Path, out: Path
) -> None:
    status, text, _ = infer(tiny_model, pictures / "a.png", "--out", out, "--upscale", "labels")
    assert status == 0
    assert ", 6 classes, labels brought to size, by " in text
    with Segmenter(tiny_model, backend="ort", upscale="labels") as segmenter:
        np.testing.assert_array_equal(pixels(out / "mask/a.png"), segmenter(pictures / "a.png").labels)


def test_pictures_of_more_pixels_than_allowed_are_skipped(
    infer: Run, tiny_model: Path, pictures: Path, photo: Photo, out: Path
) -> None:
    PillowImage.fromarray(photo[:50]).save(pictures / "b.png")
    status, text, err = infer(tiny_model, pictures, "--out", out, "--max-pixels", "10000", "--json")
    document = json.loads(text)
    assert (status, err.count("--max-pixels 10000")) == (3, 3)
    assert [Path(entry["source"]).name for entry in document["images"]] == ["b.png"]
    assert [Path(entry["source"]).name for entry in document["skipped"]] == ["a.png", "c.png", "d.png"]


def test_an_engine_is_prepared_without_a_picture(
    infer: Run, tiny_model: Path, out: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    with Segmenter(tiny_model, backend="ort", device="cpu", options=None) as segmenter:
        info = str(segmenter.info)
    arguments = (tiny_model, "--prepare", "--backend", "ort", "--device", "cpu")
    status, text, err = infer(*arguments)
    assert (status, text) == (0, f"ready: {info}\n")
    first, last = err.splitlines()
    assert first == f"preparing {tiny_model} for ort on cpu; some engines build for minutes"
    assert re.fullmatch(r"prepared in \d+\.\d s", last)
    assert infer(*arguments, "-q")[2] == ""
    assert "has no device" in one_error(infer(tiny_model, "--prepare", "--device", "nonsense", "-q"))
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_is_no_unicode_is_in_the_json_document(
    infer: Run, tiny_model: Path, photo: Photo, tmp_path: Path, out: Path
) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    try:
        for name in (b"caf\xe9.png", b"caf\xe8.png"):
            PillowImage.fromarray(photo).save(os.fsencode(folder) + b"/" + name, "PNG")
    except OSError:
        pytest.skip("this file system takes Unicode names only")
    (folder / os.fsdecode(b"caf\xe8.png")).write_bytes(b"no picture")
    status, text, _ = infer(tiny_model, folder, "--out", out, "--json")
    document = json.loads(text)
    assert (status, len(document["images"]), len(document["skipped"])) == (3, 1, 1)
    assert os.path.exists(os.fsencode(document["images"][0]["outputs"]["mask"]))  # noqa: PTH110
    assert document["images"][0]["source"].endswith("caf\\xe9.png")


@pytest.mark.skipif(os.name != "posix", reason="names of Windows hold no control characters")
def test_a_name_that_would_steer_a_terminal_is_told_in_one_line(
    infer: Run, tiny_model: Path, photo: Photo, tmp_path: Path, out: Path
) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    PillowImage.fromarray(photo).save(folder / "good\x1b[2J\u202f.png")
    (folder / "a\nerror: fake.jpg").write_bytes(b"no picture")
    status, text, err = infer(tiny_model, folder, "--out", out)
    assert (status, err.count("\n")) == (3, 1)
    assert r"a\x0aerror: fake.jpg: no picture" in err
    assert "good\\x1b[2J\u202f.png  120×90" in text
    assert "\x1b" not in text
    line = one_error(infer(tiny_model, folder, "--out", out))
    assert r"good\x1b[2J" in line
    assert "is there already" in line


@pytest.mark.skipif(os.name != "posix", reason="signals are of POSIX")
@pytest.mark.parametrize("style", [(), ("--json",)])
def test_an_interrupted_job_leaves_whole_files_and_says_what_it_did(
    tiny_model: Path, pictures: Path, out: Path, style: tuple[str, ...]
) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", MAIN, str(tiny_model), "-", "--out", str(out), *style],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # what runs in the background ignores it
    )
    with child:
        assert child.stdin is not None
        for name in "abc":
            child.stdin.write((pictures / f"{name}.png").read_bytes())
        child.stdin.flush()
        end = time.monotonic() + DEADLINE_S
        while not (out / "overlay/stdin-000003.png").exists():
            assert time.monotonic() < end
            time.sleep(0.01)
        child.send_signal(signal.SIGINT)
        text, err = child.communicate(timeout=DEADLINE_S)
    assert child.returncode == 130
    assert err.decode().splitlines()[-1:] == ["error: interrupted; what was finished is whole"], err
    assert "Traceback" not in err.decode()
    assert not [name for name in files(out) if "/." in name]
    assert len([pixels(out / name) for name in files(out) if name.endswith(".png")]) == 6
    if style:
        told = json.loads(text)["images"]
        assert len(told) <= 3
    else:
        assert re.match(r"[0-3] pictures? in ", text.decode().splitlines()[-1])


def test_an_error_in_the_middle_ends_a_job_after_the_pictures_before_it(
    infer: Run,
    write_conv_model: Callable[..., Path],
    conv_card: ModelCard,
    pictures: Path,
    out: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = write_conv_model(tmp_path / "model.onnx", conv_card)
    save = Result.save

    def full_disk(result: Result, *arguments: Any, **options: Any) -> Any:
        if result.source.endswith("c.png"):
            (out / "overlay/c.png").mkdir()  # in the way, as if somebody had put it there meanwhile
        return save(result, *arguments, **options)

    monkeypatch.setattr(Result, "save", full_disk)
    status, text, err = infer(model, pictures, "--out", out)
    assert status == 1
    assert err.startswith(f"error: cannot write {out / 'overlay/c.png'}")
    assert [line.split("  ")[0] for line in text.splitlines()[1:3]] == [
        str(pictures / name) for name in ("a.png", "b.png")
    ]
    assert text.splitlines()[-1].startswith("2 pictures in ")
