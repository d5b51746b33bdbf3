import json
from collections.abc import Callable
from pathlib import Path

import pytest

from segship.runtime.model_file import read_card
from segship.training.checkpoint import load_checkpoint
from segship.training.cli import seg_train

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def arguments(index_tree: Path, tmp_path: Path) -> list[object]:
    """What trains a tiny U-Net for an epoch into ``run/``."""
    return [
        "--data",
        f"camvid:{index_tree}",
        "--arch",
        "unet",
        "--base-channels",
        2,
        "--size",
        "32x40",
        "--epochs",
        1,
        "--batch-size",
        3,
        "--device",
        "cpu",
        "--out",
        tmp_path / "run",
    ]


def test_a_run_ends_with_what_it_reached_and_what_comes_next(
    command: Command, arguments: list[object], tmp_path: Path
) -> None:
    status, out, err = command(seg_train, *arguments)
    assert status == 0
    checkpoint = tmp_path / "run/best.safetensors"
    metrics = read_card(checkpoint).provenance.metrics
    assert out.startswith(f"best epoch 1: mIoU {metrics['miou']:.4f}, pixel accuracy {metrics['pixel_accuracy']:.4f}\n")
    assert out.endswith(f"next: seg-export {checkpoint} -o model.onnx\n")
    assert err.startswith("epoch   1  loss ")
    assert err.endswith("best\n")
    assert err.count("\n") == 1


def test_the_options_reach_the_network(command: Command, arguments: list[object], tmp_path: Path) -> None:
    assert command(seg_train, *arguments, "--size", "48", "-q")[0] == 0
    network, card = load_checkpoint(tmp_path / "run/best.safetensors")
    assert card.network is not None
    assert card.network.options == {"base_channels": 2}
    assert network.get_submodule("down1.0").get_parameter("weight").shape[0] == 2
    assert card.preprocess.size == (48, 48)


def test_json_prints_one_document_and_quiet_no_progress(
    command: Command, arguments: list[object], tmp_path: Path
) -> None:
    status, out, err = command(seg_train, *arguments, "--json", "-q")
    assert (status, err) == (0, "")
    document = json.loads(out)
    checkpoint = tmp_path / "run/best.safetensors"
    assert document == {
        "checkpoint": str(checkpoint),
        "best_epoch": 1,
        "validation": read_card(checkpoint).provenance.metrics,
    }


def test_json_says_null_where_nothing_could_be_measured(
    command: Command, arguments: list[object], index_tree: Path
) -> None:
    from PIL import Image as PillowImage

    for path in (index_tree / "valannot").iterdir():
        PillowImage.new("L", (40, 32), 11).save(path)
    status, out, _ = command(seg_train, *arguments, "--json", "-q")
    assert status == 0
    assert json.loads(out)["validation"]["miou"] is None


def test_a_folder_that_holds_a_run_is_written_over_only_when_asked(
    command: Command, arguments: list[object], tmp_path: Path
) -> None:
    assert command(seg_train, *arguments, "-q")[0] == 0
    before = (tmp_path / "run/best.safetensors").read_bytes()
    status, out, err = command(seg_train, *arguments, "--seed", 1)
    assert (status, out) == (1, "")
    assert err == f"error: {tmp_path / 'run'} already holds a run; choose another --out, or add --overwrite\n"
    assert (tmp_path / "run/best.safetensors").read_bytes() == before
    assert command(seg_train, *arguments, "-q", "--seed", 1, "--overwrite")[0] == 0
    assert (tmp_path / "run/best.safetensors").read_bytes() != before


def test_base_channels_with_u2netp_is_wrong_use(command: Command, arguments: list[object], tmp_path: Path) -> None:
    status, out, err = command(seg_train, *arguments, "--arch", "u2netp")
    assert (status, out) == (2, "")
    assert "--base-channels scales unet; u2netp has fixed channels" in err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (["--arch", "deeplab"], "'deeplab' is not one of 'unet', 'u2netp'"),
        (["--size", "0x32"], "'0x32' is no size; expected HEIGHTxWIDTH"),
        (["--size", "32x32x3"], "'32x32x3' is no size"),
        (["--epochs", "0"], "0 is not in the range x>=1"),
        (["--batch-size", "-1"], "-1 is not in the range x>=1"),
        (["--precision", "fp16"], "'fp16' is not one of"),
        (["--wings"], "No such option"),
    ],
)
def test_wrong_use_ends_with_status_2_and_names_the_value(
    command: Command, arguments: list[object], extra: list[str], words: str
) -> None:
    status, out, err = command(seg_train, *arguments, *extra)
    assert (status, out) == (2, "")
    assert words in err


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (["--lr", "0"], "the learning rate is 0.0; expected a number above 0"),
        (["--lr", "1e30"], "lower --lr"),
        (["--device", "cuda:99"], "cuda:99 was asked for, but this PyTorch"),
        (["--device", "gpu"], "no device is called 'gpu'; expected auto, cpu or cuda[:N]"),
        (["--data", "voc:/tmp"], "no kind of dataset is called 'voc'; known are camvid, demo"),
        (["--data", "camvid:/nowhere/at/all"], "'/nowhere/at/all' is no folder"),
        (["--size", "20000"], "preprocess.size is (20000, 20000); each side must lie in 1…16384"),
        (["--size", "32", "--batch-size", "1"], "take a larger --size or --batch-size"),
    ],
)
def test_what_cannot_be_trained_ends_with_status_1_and_one_line(
    command: Command, arguments: list[object], tmp_path: Path, extra: list[str], words: str
) -> None:
    status, out, err = command(seg_train, *arguments, *extra)
    assert (status, out) == (1, "")
    assert err.startswith("error: ")
    assert words in err
    assert err.count("\n") == 1
    assert not (tmp_path / "run").exists()
