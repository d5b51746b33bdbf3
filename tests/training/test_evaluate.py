import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from segship.runtime.card import Network
from segship.runtime.errors import CheckpointError, DatasetError, DeviceError
from segship.training.augment import PRESETS
from segship.training.checkpoint import file_sha256
from segship.training.config import TrainConfig
from segship.training.data import DataOptions
from segship.training.evaluate import Evaluation, evaluate
from segship.training.optimisation import OptimizerConfig
from segship.training.progress import Progress
from segship.training.run import TrainResult
from segship.training.state import states
from segship.training.trainer import train

QUIET = Progress()


@pytest.fixture(scope="module")
def tree(write_camvid: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_camvid(tmp_path_factory.mktemp("evaluate") / "camvid")


@pytest.fixture(scope="module")
def result(tree: Path) -> TrainResult:
    """A run that is validated once, at its end."""
    config = TrainConfig(
        f"camvid:{tree}",
        Network("unet", {"base_channels": 4}),
        crop=(16, 24),
        epochs=5,
        validate_every=5,
        batch_size=2,
        augment=PRESETS["none"],
        optimizer=OptimizerConfig(learning_rate=0.03, ema=0.5),
        device="cpu",
        workers=1,
    )
    return train(config, tree.parent / "run", QUIET)


def _evaluate(checkpoint: Path, tree: Path, out: Path | None = None) -> Evaluation:
    return evaluate(checkpoint, f"camvid:{tree}", DataOptions(), "cpu", out, QUIET)


def test_the_figures_are_those_that_the_run_reported(tree: Path, result: TrainResult, tmp_path: Path) -> None:
    found = _evaluate(result.checkpoint, tree, tmp_path / "out")
    reported = json.loads((result.checkpoint.parent / "report.json").read_text("utf-8"))
    written = json.loads((tmp_path / "out/report.json").read_text("utf-8"))
    for name in ("task", "totals", "pixels", "classes", "confusion_matrix", "versions"):
        assert written[name] == reported[name], name
    assert written["totals"]["miou"] == result.scores.miou
    assert len(np.unique(np.nonzero(found.matrix.counts)[1])) > 1, "the network should tell something apart"
    assert json.loads(found.to_json()) == written
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"report.json", "confusion.png"}


def test_the_facts_tell_what_was_measured_on_what_and_with_what(tree: Path, result: TrainResult) -> None:
    facts = dict(_evaluate(result.checkpoint, tree).facts)
    assert facts.pop("seconds") > 0  # type: ignore[operator]  # a number
    assert facts == {
        "checkpoint": str(result.checkpoint),
        "sha256": file_sha256(result.checkpoint),
        "data": f"camvid:{tree}",
        "pictures": 3,
        "device": "cpu",
    }


def test_a_runs_last_state_can_be_measured_too(tree: Path, result: TrainResult) -> None:
    last = states(result.checkpoint.parent)[0]
    assert np.array_equal(_evaluate(last, tree).matrix.counts, _evaluate(result.checkpoint, tree).matrix.counts)


def test_without_a_folder_nothing_is_written(tree: Path, result: TrainResult) -> None:
    before = sorted(tree.parent.rglob("*"))
    _evaluate(result.checkpoint, tree)
    assert sorted(tree.parent.rglob("*")) == before


def test_people_get_a_table_with_a_line_for_each_class(tree: Path, result: TrainResult) -> None:
    text = _evaluate(result.checkpoint, tree).to_text()
    assert "Bicyclist" in text
    assert f"mIoU                    {result.scores.miou:.4f}" in text


def test_progress_counts_the_pictures(tree: Path, result: TrainResult) -> None:
    told: list[object] = []

    class Listener(Progress):
        def begin(self, what: str, steps: int) -> None:
            told.append((what, steps))

        def advance(self, loss: float | None = None) -> None:
            told.append(loss)

    evaluate(result.checkpoint, f"camvid:{tree}", DataOptions(), "cpu", None, Listener())
    assert told == [("measuring", 3), None, None, None]


def test_a_folder_whose_name_is_no_unicode_is_no_trouble(tree: Path, result: TrainResult, tmp_path: Path) -> None:
    folder = tmp_path / "stra\udcdfe"
    try:
        folder.symlink_to(tree)
    except OSError:
        pytest.skip("this file system has Unicode names only, or no links")
    found = _evaluate(result.checkpoint, folder, tmp_path / "out")
    assert found.to_json().isascii()
    for text in (found.to_json(), (tmp_path / "out/report.json").read_text("utf-8")):
        assert json.loads(text)["facts"]["data"] == f"camvid:{folder}"


def test_data_of_other_classes_is_refused(tree: Path, tiny_checkpoint: Path) -> None:
    with pytest.raises(DatasetError, match=r"tiny\.safetensors knows the classes .*, and camvid:.* has Sky, Building"):
        _evaluate(tiny_checkpoint, tree)


@pytest.mark.parametrize(("variant", "form"), [("grey8", "1 and uint8"), ("grey16", "1 and uint16")])
def test_data_of_another_form_is_refused(tiny_checkpoint: Path, variant: str, form: str) -> None:
    with pytest.raises(
        DatasetError,
        match=rf"tiny\.safetensors takes pictures of 3 channels and uint8, and those of demo:{variant} have {form}; ",
    ):
        evaluate(tiny_checkpoint, f"demo:{variant}", DataOptions(), "cpu", None, QUIET)


def test_what_cannot_be_measured_is_an_error_of_its_own(tree: Path, result: TrainResult, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be read as a checkpoint"):
        _evaluate(tmp_path / "none.safetensors", tree)
    with pytest.raises(DatasetError):
        _evaluate(result.checkpoint, tmp_path)
    with pytest.raises(DeviceError, match="no device is called 'tpu'"):
        evaluate(result.checkpoint, f"camvid:{tree}", DataOptions(), "tpu", None, QUIET)
    with pytest.raises(DatasetError, match="--val-fraction has no use"):
        evaluate(result.checkpoint, f"camvid:{tree}", DataOptions(val_fraction=0.5), "cpu", None, QUIET)
