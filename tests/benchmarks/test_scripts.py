"""The benchmark scripts run as they are; what they measure is for people to judge."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from numpy.typing import NDArray
from PIL import Image

from segship.benchmarks import demo, latency, pipeline, training
from segship.benchmarks.accuracy import accuracy
from segship.benchmarks.ordinary import OrdinaryPictures, ordinary_batches, ordinary_files, ordinary_step
from segship.runtime.card import Network
from segship.runtime.errors import DatasetError
from segship.runtime.palettes import DEMO
from segship.runtime.preprocess import Preprocess
from segship.runtime.segmenter import Segmenter
from segship.training.config import TrainConfig
from segship.training.data import IGNORE_INDEX, open_dataset
from segship.training.loader import Loader
from segship.training.metrics import ConfusionMatrix
from segship.training.progress import Progress
from segship.training.setup import set_up


def test_latency_puts_every_engine_in_its_table(tiny_model: Path, tiny_checkpoint: Path) -> None:
    done = CliRunner().invoke(
        latency.latency, [str(tiny_model), "--checkpoint", str(tiny_checkpoint), "--seconds", "0.2"]
    )
    assert done.exit_code == 0, done.output
    assert all(engine in done.output for engine in ("ONNX Runtime", "OpenCV", "PyTorch"))
    fewest = re.search(r"of noise, (\d+)", " ".join(done.output.split()))
    assert fewest is not None
    assert int(fewest[1]) >= 100  # of fewer, a 99th percentile is the slowest one


def test_pipeline_measures_the_road_its_limit_and_the_ordinary_script(
    tiny_model: Path, photo: NDArray[np.uint8], tmp_path: Path
) -> None:
    for number in range(3):
        Image.fromarray(photo).save(tmp_path / f"{number}.png")
    done = CliRunner().invoke(pipeline.pipeline, [str(tiny_model), str(tmp_path), "--rounds", "2"])
    assert done.exit_code == 0, done.output
    summary = done.output.rsplit("\n\n", 1)[1].splitlines()
    assert summary[0].startswith("3 pictures, 2 turns")
    ratio = float(summary[1].split("a picture; ")[1].split()[0])
    assert ratio > 0.3  # in noise, but what the road does cannot cost nothing
    assert float(summary[3].removeprefix("ordinary script ").split()[0]) > 0


def test_accuracy_is_that_of_the_runtime_on_the_validation_part(tiny_model: Path) -> None:
    done = CliRunner().invoke(accuracy, [str(tiny_model), "--data", "demo", "--backend", "opencv"])
    assert done.exit_code == 0, done.output
    matrix = ConfusionMatrix(len(DEMO), 255)
    held_out = open_dataset("demo").val
    with Segmenter(tiny_model, backend="opencv") as segmenter:
        for sample in (held_out[index] for index in range(len(held_out))):
            matrix.add(sample.labels, segmenter(sample.image).labels)
    assert f"{matrix.scores().miou:.5f}" in done.output


@pytest.mark.parametrize(("miou", "status"), [(0.95, 0), (0.5, 1)])
def test_the_demo_fails_where_the_network_did_not_learn(miou: float, status: int, tmp_path: Path) -> None:
    (tmp_path / "miou.json").write_text(json.dumps(dict.fromkeys(demo.ENGINES, miou)))
    assert CliRunner().invoke(demo.summary, [str(tmp_path)]).exit_code == status


def test_the_demo_writes_its_held_out_pictures_with_their_truth(tmp_path: Path) -> None:
    assert CliRunner().invoke(demo.pictures, [str(tmp_path)]).exit_code == 0
    held_out = open_dataset("demo").val
    sample = held_out[3]
    assert len(list((tmp_path / "images").iterdir())) == len(held_out)
    with (
        Image.open(tmp_path / f"images/{sample.name}.png") as image,
        Image.open(tmp_path / f"masks/{sample.name}.png") as mask,
    ):
        assert (np.asarray(image) == sample.image).all()
        assert (np.asarray(mask) == sample.labels).all()


@pytest.fixture
def halves(tmp_path: Path) -> Path:
    """A CamVid of 4 and 1 pictures, 60×80, black (class 0) on the left and white (class 1) on the right."""
    labels = np.zeros((60, 80), np.uint8)
    labels[:, 40:] = 1
    for part, count in (("train", 4), ("val", 1)):
        for folder, pixels in ((part, np.stack([labels * 255] * 3, axis=-1)), (f"{part}annot", labels)):
            (tmp_path / folder).mkdir()
            for number in range(count):
                Image.fromarray(pixels).save(tmp_path / folder / f"{number}.png")
    return tmp_path


@pytest.mark.filterwarnings(
    "ignore:.*fork.*:DeprecationWarning"
)  # DataLoader forks, and Python ≥ 3.12 warns of threads
def test_training_measures_the_loops_in_turns_and_keeps_every_figure(halves: Path, tmp_path: Path) -> None:
    arguments = [f"camvid:{halves}", "--net", "fastscnn:32x64", "--net", "bisenetv2:32x64", "--batch-size", "2"]
    arguments += ["--rounds", "2", "--seconds-per-round", "0.01", "--num-workers", "0", "--num-workers", "1"]
    # In a process of its own: its DataLoader forks, which a process full of engines' threads may not stand.
    command = [
        sys.executable,
        "-m",
        "segship.benchmarks.training",
        *arguments,
        "--json",
        str(tmp_path / "figures.json"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    first, second = json.loads((tmp_path / "figures.json").read_text())["results"]
    assert (first["network"], second["network"], first["size"]) == ("fastscnn", "bisenetv2", [32, 64])
    assert {choice["num_workers"] for choice in first["tried"]} == {0, 1}
    assert max(first["tried"], key=lambda choice: choice["images_per_second"])["num_workers"] == first["num_workers"]
    assert len(first["rounds"]) == 2
    for one in (*first["rounds"], *second["rounds"]):
        ordinary, segship, bare = (one[loop]["images_per_second"] for loop in ("ordinary", "segship", "bare"))
        assert (one["ratio"], one["of_bare"]) == (segship / ordinary, segship / bare)
        assert 0 < one["ordinary"]["data_wait"] < 1
        assert 0 < one["segship"]["data_wait"] < 1
        assert f"ratio {one['ratio']:.3f}" in done.stdout
    assert f"segship is {np.median([one['ratio'] for one in first['rounds']]):.3f} times" in done.stdout


def test_the_loops_that_are_measured_learn(halves: Path, tmp_path: Path) -> None:
    config = TrainConfig(f"camvid:{halves}", Network("unet", {"base_channels": 4}), size=(32, 64), batch_size=2)
    setup = set_up(config, Progress())
    form = setup.card.preprocess
    (tmp_path / "masks").mkdir()
    pictures = OrdinaryPictures(ordinary_files(config, setup, tmp_path / "masks"), form)
    batches, step = ordinary_batches(pictures, 2, num_workers=0), ordinary_step(config, setup)
    losses = [step(next(batches)) for _ in range(20)]
    with Loader(setup.split.train, form, None, workers=1, cache_mb=1) as loader:
        segship = training.segship_loop(config, setup, loader)
        stream = segship.batches()
        ours = [segship.step(next(stream)) for _ in range(20)]
        stream.close()
    for first, last in ((losses[0], losses[-1]), (ours[0], ours[-1])):
        assert last < 0.7 * first


def test_the_ordinary_loop_moves_picture_and_mask_together_as_the_preset_light_does(halves: Path) -> None:
    pairs = [(halves / "train/0.png", halves / "trainannot/0.png")]
    form = Preprocess((48, 64), 3, "uint8", color_order="RGB", mean=(0.5,) * 3, std=(1.0,) * 3)
    pictures = OrdinaryPictures(pairs, form)
    flips, filled, shares = 0, 0, []
    torch.manual_seed(0)
    for _ in range(60):
        pixels, labels = pictures[0]
        assert (pixels.shape, labels.shape) == ((3, 48, 64), (48, 64))
        inside = labels != IGNORE_INDEX
        assert ((pixels[0] > 0) == (labels == 1))[inside].float().mean() > 0.95
        flips += int((labels[24, :32] == 1).sum() > (labels[24, 32:] == 1).sum())
        filled += int(not inside.all())
        shares.append(float((labels[inside] == 1).float().mean()))
    assert 15 < flips < 45  # half of 60
    assert 3 < filled < 30  # a quarter of 60: log(1 / 0.9) of log(1.4 / 0.9)
    assert np.ptp(shares) > 0.1  # where parts are enlarged, one half takes up more


def test_training_refuses_data_that_the_ordinary_loop_cannot_read(halves: Path, tmp_path: Path) -> None:
    config = TrainConfig(f"camvid:{halves}", Network("fastscnn"), size=(32, 64), batch_size=2)
    setup = set_up(config, Progress())
    with pytest.raises(DatasetError, match="demo is not made of 8-bit RGB files; expected such as camvid:DIR"):
        ordinary_files(replace(config, data="demo"), replace(setup, split=open_dataset("demo")), tmp_path)
    with pytest.raises(DatasetError, match="has 4 pictures to train on; take a --batch-size of at most that"):
        ordinary_files(replace(config, batch_size=5), setup, tmp_path)


@pytest.mark.parametrize(
    ("net", "finding"),
    [
        ("unet", "'' is no size"),
        ("unet:0x5", "'0x5' is no size"),
        ("nosuch:64x64", "no architecture is called 'nosuch'"),
    ],
)
def test_training_says_what_is_wrong_with_a_net(net: str, finding: str) -> None:
    done = CliRunner().invoke(training.training, ["demo", "--net", net])
    assert done.exit_code == 2
    assert finding in done.output
