"""The command in this process; where it has to be killed it is in test_run.py."""

import json
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as PillowImage

from segship.runtime.model_file import read_card
from segship.training.checkpoint import load_checkpoint
from segship.training.cli import seg_train

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def _undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw no curves: they take most of a short run's time."""
    for drawing in ("run.draw_curves", "scores_report.draw_confusion"):
        monkeypatch.setattr(f"segship.training.{drawing}", lambda *_: None)


@pytest.fixture
def arguments(index_tree: Path, tmp_path: Path) -> list[object]:
    """What trains a tiny U-Net for an epoch into ``run/``."""
    return [
        *("--data", f"camvid:{index_tree}"),
        *("--arch", "unet", "--base-channels", 2),
        *("--size", "32x40", "--epochs", 1, "--batch-size", 3, "--device", "cpu"),
        *("--out", tmp_path / "run"),
    ]


@pytest.fixture
def config_file(index_tree: Path, tmp_path: Path) -> Path:
    """The same as a file, and more."""
    path = tmp_path / "given.toml"
    path.write_text(
        f"""
        data = "camvid:{index_tree}"
        network = {{ arch = "unet", options = {{ base_channels = 2 }} }}
        size = [32, 40]
        epochs = 1
        batch_size = 3
        device = "cpu"
        seed = 3
        augment = {{ flip = 0.25, rotation = 5.0 }}
        optimizer = {{ learning_rate = 0.02, ema = 0.5, momentum = 0.8 }}
        """,
        encoding="utf-8",
    )
    return path


def _written_config(run: Path) -> dict[str, Any]:
    return tomllib.loads((run / "config.toml").read_text(encoding="utf-8"))


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
    checkpoint = tmp_path / "run/best.safetensors"
    assert json.loads(out) == {
        "checkpoint": str(checkpoint),
        "best_epoch": 1,
        "validation": read_card(checkpoint).provenance.metrics,
    }


def test_json_says_null_where_nothing_could_be_measured(
    command: Command, arguments: list[object], index_tree: Path
) -> None:
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
    run = tmp_path / "run"
    assert err == (
        f"error: {run} already holds a run; go on with it by --resume {run}, choose another --out, or add --overwrite\n"
    )
    assert (run / "best.safetensors").read_bytes() == before
    assert command(seg_train, *arguments, "-q", "--seed", 1, "--overwrite")[0] == 0
    assert (run / "best.safetensors").read_bytes() != before


def test_a_run_that_is_over_is_told_of_again_when_it_is_resumed(
    command: Command, arguments: list[object], tmp_path: Path
) -> None:
    _, first, _ = command(seg_train, *arguments, "--json", "-q")
    status, again, err = command(seg_train, "--resume", tmp_path / "run", "--workers", 1, "--device", "cpu", "--json")
    assert (status, again) == (0, first)
    assert err == f"the run in {tmp_path / 'run'} is over; nothing is left to do\n"


def test_an_option_overrules_a_setting_and_a_setting_the_file_and_the_file_the_defaults(
    command: Command, config_file: Path, tmp_path: Path
) -> None:
    settings = ["--set", "seed=4", "--set", "batch_size=6", "--set", "optimizer.momentum=0.7", "--set", "seed=5"]
    flags = ["--batch-size", 2, "--lr", "0.03"]
    status, _, err = command(seg_train, "--config", config_file, *settings, *flags, "--out", tmp_path / "run", "-q")
    assert (status, err) == (0, "")
    config = _written_config(tmp_path / "run")
    assert (config["batch_size"], config["seed"], config["epochs"], config["keep"]) == (2, 5, 1, 2)
    optimizer = config["optimizer"]
    assert (optimizer["learning_rate"], optimizer["momentum"], optimizer["ema"]) == (0.03, 0.7, 0.5)
    assert (config["augment"]["flip"], config["augment"]["rotation"]) == (0.25, 5.0)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["--augment", "none"], {"augment": {"flip": 0.0, "rotation": 0.0}}),
        (["--set", "augment.preset=strong"], {"augment": {"flip": 0.5, "rotation": 10.0}}),
        (["--set", "augment.rotation=7", "--augment", "strong"], {"augment": {"flip": 0.5, "rotation": 7.0}}),
        (["--set", "augment.rotation=7"], {"augment": {"flip": 0.25, "rotation": 7.0}}),
        (["--arch", "unet"], {"network": {"arch": "unet", "options": {"base_channels": 2}}}),
        (["--arch", "fastscnn"], {"network": {"arch": "fastscnn", "options": {}}}),
        (["--base-channels", 3], {"network": {"arch": "unet", "options": {"base_channels": 3}}}),
        (["--crop", "32"], {"crop": [32, 32]}),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) else "",
)
def test_what_is_asked_for_anew_does_not_mix_with_what_the_file_said(
    command: Command, config_file: Path, tmp_path: Path, given: list[object], expected: dict[str, Any]
) -> None:
    status, _, err = command(seg_train, "--config", config_file, *given, "--out", tmp_path / "run", "-q")
    assert (status, err) == (0, "")
    config = _written_config(tmp_path / "run")
    assert ("size" in config) != ("crop" in config)
    for key, value in expected.items():
        written = config[key]
        assert written == value if key != "augment" else value.items() <= written.items()


def test_a_setting_for_a_network_named_by_an_option_is_not_lost(
    command: Command, arguments: list[object], tmp_path: Path
) -> None:
    without = [argument for argument in arguments if argument not in ("--base-channels", 2)]
    assert command(seg_train, *without, "--set", "network.options.base_channels=3", "-q")[0] == 0
    assert _written_config(tmp_path / "run")["network"] == {"arch": "unet", "options": {"base_channels": 3}}


def test_the_configuration_of_a_run_repeats_it_bit_for_bit(command: Command, config_file: Path, tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    assert command(seg_train, "--config", config_file, "--augment", "strong", "--out", one, "-q")[0] == 0
    assert command(seg_train, "--config", one / "config.toml", "--out", other, "-q")[0] == 0
    assert (one / "best.safetensors").read_bytes() == (other / "best.safetensors").read_bytes()
    assert (one / "config.toml").read_bytes() == (other / "config.toml").read_bytes()


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (["--arch", "deeplab"], "'deeplab' is not one of 'unet', 'u2net'"),
        (["--size", "0x32"], "'0x32' is no size; expected HEIGHTxWIDTH"),
        (["--size", "32x32x3"], "'32x32x3' is no size"),
        (["--epochs", "many"], "'many' is not a valid integer"),
        (["--precision", "fp8"], "'fp8' is not one of"),
        (["--wings"], "No such option"),
        (["--arch", "u2netp"], "--base-channels has no use for u2netp; leave it out"),
        (["--backbone", "vgg11"], "--backbone has no use for unet; leave it out"),
        (["--num-classes", 3], "training has no use for --num-classes; leave it out"),
        (["--summary"], "--summary has no use for --batch-size; leave it out"),
        (["--check-data"], "--check-data has no use for --arch; leave it out"),
        (["--eval", "x.safetensors"], "--eval has no use for --arch; leave it out"),
        (["--resume", "run"], "--resume has no use for --arch; leave it out"),
        (["--preview", "x.png"], "--preview has no use for --out; leave it out"),
    ],
)
def test_wrong_use_ends_with_status_2_and_names_the_value(
    command: Command, arguments: list[object], tmp_path: Path, extra: list[str], words: str
) -> None:
    status, out, err = command(seg_train, *arguments, *extra)
    assert (status, out) == (2, "")
    assert words in err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([], "Missing option '--data' (or data in a --config file)"),
        (["--data", "demo"], "Missing option '--arch' (or network in a --config file)"),
        (["--data", "demo", "--arch", "unet"], "Missing option '--out'"),
        (["--eval", "x.safetensors"], "Missing option '--data'"),
        (["--check-data"], "Missing option '--data'"),
        (["--summary", "--num-classes", 2], "Missing option '--arch'"),
        (["--summary", "--arch", "unet"], "Missing option '--num-classes' (or '--data', which tells)"),
        (["--resume", "run", "--config", "x.toml"], "--resume has no use for --config; leave it out"),
        (["--resume", "run", "--set", "epochs=3"], "--resume has no use for --set; leave it out"),
        (["--resume", "run", "--seed", 0], "--resume has no use for --seed; leave it out"),
        (["--resume", "run", "--out", "other"], "--resume has no use for --out; leave it out"),
        (["--resume", "run", "--overwrite"], "--resume has no use for --overwrite; leave it out"),
        (["--summary", "--check-data"], "--check-data has no use for --summary; leave it out"),
        (["--preview", "x.png", "--summary"], "--summary has no use for --preview; leave it out"),
    ],
)
def test_an_option_that_is_missing_or_useless_is_named(command: Command, given: list[object], words: str) -> None:
    status, out, err = command(seg_train, *given)
    assert (status, out) == (2, "")
    assert words in err


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (["--lr", "0"], "the learning rate is 0.0; expected a number above 0"),
        (["--epochs", "0"], "epochs is 0; expected at least 1"),
        (["--batch-size", "-1"], "batch_size is -1; expected at least 1"),
        (["--keep", "0"], "keep is 0; expected at least 1"),
        (["--seed", "-1"], "seed is -1; expected 0 or more"),
        (["--device", "cuda:99"], "cuda:99 was asked for, but this PyTorch"),
        (["--device", "gpu"], "no device is called 'gpu'; expected auto, cpu or cuda[:N]"),
        (["--data", "city:/tmp"], "no kind of dataset is called 'city'; known are camvid, "),
        (["--data", "camvid:/nowhere/at/all"], "'/nowhere/at/all' is no folder"),
        (["--val-fraction", "0.5"], "--val-fraction has no use for --data camvid"),
        (["--size", "20000"], "size is 20000×20000; expected 1…16384 pixels a side"),
        (["--crop", "32"], "size and crop are both given"),
        (["--size", "16", "--batch-size", "1", "--arch", "unet"], "take a larger --batch-size, --size or --crop"),
        (["--loss", "wings"], "'wings' has no known term"),
        (["--loss", "bce"], "the loss bce is for two classes"),
        (["--class-weights", "1,2"], "class_weights is '1,2', a list of 2"),
        (["--init", "/nowhere.safetensors"], "/nowhere.safetensors"),
        (["--set", "epochs"], "--set epochs: expected key=value"),
        (["--set", "wings=2"], "wings"),
        (["--set", "optimizer.wings=2"], "optimizer"),
        (["--config", "/nowhere.toml"], "/nowhere.toml cannot be read"),
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


def test_a_loss_that_is_no_number_is_one_line(command: Command, arguments: list[object]) -> None:
    status, out, err = command(seg_train, *arguments, "--lr", "1e30", "--epochs", 2, "-q")
    assert (status, out) == (1, "")
    assert "lower --lr" in err
    assert err.count("\n") == 1


def test_a_place_that_cannot_be_written_is_one_line(command: Command, arguments: list[object], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    status, out, err = command(seg_train, *arguments, "--out", tmp_path / "file/run")
    assert (status, out) == (1, "")
    assert err.startswith(f"error: cannot write {tmp_path / 'file/run'}")
    assert err.count("\n") == 1


def test_a_folder_without_a_run_cannot_be_resumed_and_says_so_in_one_line(command: Command, tmp_path: Path) -> None:
    status, out, err = command(seg_train, "--resume", tmp_path / "none")
    assert (status, out) == (1, "")
    assert err.startswith(f"error: {tmp_path / 'none'} holds no run that can be resumed: config.toml cannot be read")
    assert err.count("\n") == 1


def test_a_checkpoint_is_measured_and_its_figures_are_those_of_the_run(
    command: Command, arguments: list[object], index_tree: Path, tmp_path: Path
) -> None:
    assert command(seg_train, *arguments, "-q")[0] == 0
    checkpoint = tmp_path / "run/best.safetensors"
    data = ["--data", f"camvid:{index_tree}"]
    status, out, err = command(seg_train, "--eval", checkpoint, *data, "--json", "--out", tmp_path / "measured")
    assert (status, err) == (0, "")
    totals = json.loads(out)["totals"]
    for name, value in read_card(checkpoint).provenance.metrics.items():
        assert totals[name] == value
    assert json.loads((tmp_path / "measured/report.json").read_text(encoding="utf-8"))["totals"] == totals
    status, out, _ = command(seg_train, "--eval", checkpoint, "--config", tmp_path / "run/config.toml")
    assert status == 0
    assert f"mIoU                    {totals['miou']:.4f}" in out


def test_what_a_run_held_out_is_what_its_configuration_measures_on(
    command: Command, index_tree: Path, tmp_path: Path
) -> None:
    """Whatever the seed of the run was: it decides nothing about which pictures are held out."""
    (tmp_path / "pairs").mkdir()
    (index_tree / "train").rename(tmp_path / "pairs/images")
    (index_tree / "trainannot").rename(tmp_path / "pairs/masks")
    run = ["--data", f"folder:{tmp_path / 'pairs'}", "--arch", "unet", "--base-channels", 2, "--epochs", 1]
    assert command(seg_train, *run, "--seed", 5, "--val-fraction", 0.5, "--out", tmp_path / "run", "-q")[0] == 0
    checkpoint = tmp_path / "run/best.safetensors"
    arguments = ["--eval", checkpoint, "--config", tmp_path / "run/config.toml", "--json", "-q"]
    status, out, _ = command(seg_train, *arguments)
    assert status == 0
    assert json.loads(out)["totals"]["miou"] == read_card(checkpoint).provenance.metrics["miou"]
    by_flags = ["--eval", checkpoint, *run[:2], "--val-fraction", 0.5, "--json", "-q"]
    assert json.loads(command(seg_train, *by_flags)[1])["totals"] == json.loads(out)["totals"]


def test_data_is_checked_and_a_sheet_drawn_here_or_where_it_was_asked_for(
    command: Command, index_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = ["--data", f"camvid:{index_tree}", "--check-data"]
    status, out, err = command(seg_train, *data)
    assert (status, err) == (0, "")
    assert "Bicyclist" in out
    assert out.endswith("\ncheck-data.png\n")
    assert (tmp_path / "check-data.png").is_file()
    status, out, _ = command(seg_train, *data, "--json", "--out", tmp_path / "check")
    assert status == 0
    assert json.loads(out)["train"]["pictures"] == 6
    with PillowImage.open(tmp_path / "check/check-data.png") as sheet:
        assert sheet.size[0] > 100


def test_data_with_a_fault_is_reported_and_is_an_error(command: Command, index_tree: Path) -> None:
    PillowImage.new("L", (40, 32), 77).save(index_tree / "trainannot/seq_001.png")
    data = ["--data", f"camvid:{index_tree}", "--check-data"]
    status, out, err = command(seg_train, *data, "--json", "--out", index_tree)
    assert (status, err) == (1, "")
    assert "label id 77" in json.loads(out)["train"]["faults"][0]


def test_data_is_checked_without_torch(index_tree: Path, tmp_path: Path) -> None:
    code = "import sys; sys.modules['torch'] = None; from segship.training.cli import main; main()"
    arguments = [sys.executable, "-c", code, "--data", f"camvid:{index_tree}", "--check-data", "--out", str(index_tree)]
    done = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Bicyclist" in done.stdout


def test_the_preview_is_drawn_and_nothing_is_trained(command: Command, arguments: list[object], tmp_path: Path) -> None:
    sheet = tmp_path / "preview.png"
    status, out, err = command(seg_train, *arguments[:-2], "--augment", "strong", "--preview", sheet)
    assert (status, out, err) == (0, f"{sheet}\n", "")
    with PillowImage.open(sheet) as image:
        assert image.size[0] > 8 * 40
    assert not (tmp_path / "run").exists()


def test_a_summary_lists_layers_as_text_or_as_json(command: Command, index_tree: Path) -> None:
    network = ["--summary", "--arch", "unet", "--base-channels", 4, "--size", "32x40"]
    status, out, err = command(seg_train, *network, "--num-classes", 11)
    assert (status, err) == (0, "")
    assert "1×3×32×40" in out
    status, as_json, _ = command(seg_train, *network, "--data", f"camvid:{index_tree}", "--json")
    assert status == 0
    report = json.loads(as_json)
    assert report["input_shape"] == [1, 3, 32, 40]
    assert f"{report['parameters']:,} parameters" in out
