"""The benchmark scripts run as they are; what they measure is for people to judge."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray
from PIL import Image

from segship.benchmarks import demo, latency, overhead
from segship.benchmarks.accuracy import accuracy
from segship.runtime.palettes import DEMO
from segship.runtime.segmenter import Segmenter
from segship.training.data import open_dataset
from segship.training.metrics import ConfusionMatrix


def test_latency_puts_every_engine_in_its_table(tiny_model: Path, tiny_checkpoint: Path) -> None:
    done = CliRunner().invoke(
        latency.latency, [str(tiny_model), "--checkpoint", str(tiny_checkpoint), "--seconds", "0.2"]
    )
    assert done.exit_code == 0, done.output
    assert all(engine in done.output for engine in ("ONNX Runtime", "OpenCV", "PyTorch"))


def test_overhead_times_the_command_against_its_forward_passes(
    tiny_model: Path, photo: NDArray[np.uint8], tmp_path: Path
) -> None:
    for number in range(3):
        Image.fromarray(photo).save(tmp_path / f"{number}.png")
    done = CliRunner().invoke(overhead.overhead, [str(tiny_model), str(tmp_path), "--rounds", "1", "--backend", "ort"])
    assert done.exit_code == 0, done.output
    ratio = float(done.output.rsplit("ratio median ", 1)[1].split(",")[0])
    assert ratio > 1  # the command does all that the forward passes do, and more


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
