import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image as PillowImage

from segship.runtime.video_writer import VideoWriter

Run = Callable[..., tuple[int, str, str]]
Photo = NDArray[np.uint8]


@pytest.fixture
def pictures(photo: Photo, tmp_path: Path) -> Path:
    """A folder: a.png, b.png which is damaged, sub/c.png."""
    root = tmp_path / "pictures"
    (root / "sub").mkdir(parents=True)
    PillowImage.fromarray(photo).save(root / "a.png")
    (root / "b.png").write_bytes((root / "a.png").read_bytes()[:400])
    PillowImage.fromarray(photo[::-1]).save(root / "sub/c.png")
    return root


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.ray
@pytest.mark.extras
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray's own
@pytest.mark.filterwarnings("ignore::FutureWarning:ray")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_cluster_writes_and_tells_what_one_machine_does(
    infer: Run, conv_model: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.chdir(tmp_path)
    chosen = ("--only", "1,3", "--palette", "voc", "--min-area", "5", "--save", "mask,overlay", "--json")
    options = (*chosen, "--device", "cpu", "--threads", "1")
    documents = []
    for out, where in (("here", ()), ("there", ("--ray", "local"))):
        status, text, err = infer(conv_model, "pictures", "--out", out, *options, *where)
        assert status == 3, err
        assert [line for line in err.splitlines() if line.startswith("skipped: ")] == [
            line for line in err.splitlines() if "b.png" in line
        ]
        documents.append(json.loads(text))
    here, there = documents
    assert files(Path("there")) == files(Path("here"))
    assert len(files(Path("here"))) == 5
    assert there["ray"] == "local"
    assert [one["source"] for one in there["skipped"]] == [one["source"] for one in here["skipped"]]
    shown = sorted(there["images"], key=lambda one: str(one["source"]))
    for one, other in zip(here["images"], shown, strict=True):
        kept = ("source", "tag", "height", "width", "areas")
        assert {key: one[key] for key in kept} == {key: other[key] for key in kept}
        assert one["outputs"] == {
            kind: str(Path("here", *Path(path).parts[1:])) for kind, path in other["outputs"].items()
        }


def test_a_cluster_does_no_video_and_no_stream(infer: Run, conv_model: Path, photo: Photo, tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "video.mp4", 10.0, (90, 120)) as writer:
        writer.write(photo)
    status, out, err = infer(conv_model, tmp_path / "video.mp4", "--out", tmp_path / "out", "--ray", "local")
    assert (status, out) == (1, "")
    assert err == "error: --ray spreads pictures in files over machines; videos and streams run on one: leave it out\n"


@pytest.mark.extras
def test_what_does_not_fit_is_said_before_a_cluster_is_started(
    infer: Run, conv_model: Path, pictures: Path, tmp_path: Path
) -> None:
    arguments = (conv_model, pictures / "a.png", "--ray", "nowhere:1", "--out", tmp_path / "out")
    for options, words in ((("--only", "dog"), "no class 'dog'"), (("--save", "cutout"), "what to cut out")):
        status, _, err = infer(*arguments, *options)
        assert (status, err.count("\n")) == (1, 1)
        assert words in err
    (tmp_path / "out/mask").mkdir(parents=True)
    (tmp_path / "out/mask/a.png").touch()
    assert "add --overwrite" in infer(*arguments)[2]
    (tmp_path / "out/overlay").mkdir()
    (tmp_path / "out/overlay/a.png").touch()
    status, out, _ = infer(*arguments, "--skip-existing")
    assert (status, out.splitlines()[-1][:30]) == (0, "0 pictures, 1 there already in")


def test_a_job_that_ends_with_an_error_is_told_of_as_on_one_machine(
    infer: Run, conv_model: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)  # as where it is not installed
    status, text, err = infer(conv_model, pictures, "--out", tmp_path / "out", "--ray", "local", "--json")
    document = json.loads(text)
    assert (status, err.count("\n")) == (1, 1)
    assert re.search(r"needs ray(\.data)?, which does not import here", err)
    assert (document["complete"], document["done"], document["images"]) == (False, 0, [])
