import math
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PillowImage
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from segship.runtime.errors import MissingExtraError, OutputError
from segship.training.metrics import ConfusionMatrix, Scores
from segship.training.report import EpochRecord
from segship.training.tensorboard import EventLog

NAMES = ("road", "tree, or bush", "wire")


def _record(step: int, scores: Scores | None) -> EpochRecord:
    return EpochRecord(
        epoch=step // 2,
        step=step,
        learning_rate=0.001,
        train_loss=1 / step,
        data_wait=0.25,
        scores=scores,
        seconds=3.5,
    )


def _scores() -> Scores:
    """Of three classes, the last of which is nowhere."""
    matrix = ConfusionMatrix(3, 255)
    matrix.add(np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1]))
    return matrix.scores()


def _events(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(folder))
    events.Reload()
    return events


def _scalars(folder: Path, tag: str) -> dict[int, float]:
    return {event.step: pytest.approx(event.value) for event in _events(folder).Scalars(tag)}


def test_every_step_has_its_loss_and_learning_rate(tmp_path: Path) -> None:
    with EventLog(tmp_path / "events") as log:
        for step in (1, 2, 3):
            log.training_step(step, loss=1 / step, learning_rate=0.1 * step)
    assert _scalars(tmp_path / "events", "step/loss") == {1: 1, 2: 1 / 2, 3: 1 / 3}
    assert _scalars(tmp_path / "events", "step/learning_rate") == {1: 0.1, 2: 0.2, 3: 0.3}


def test_every_epoch_has_its_figures_and_the_iou_of_each_class_that_has_one(tmp_path: Path) -> None:
    with EventLog(tmp_path) as log:
        log.epoch(_record(2, _scores()), NAMES)
    assert _scalars(tmp_path, "validation/miou") == {2: (1 / 2 + 2 / 3) / 2}
    assert _scalars(tmp_path, "validation/pixel_accuracy") == {2: 3 / 4}
    assert _scalars(tmp_path, "IoU/road") == {2: 1 / 2}
    assert _scalars(tmp_path, "IoU/tree, or bush") == {2: 2 / 3}
    assert _scalars(tmp_path, "epoch/loss") == {2: 1 / 2}
    assert _scalars(tmp_path, "epoch/data_wait") == {2: 0.25}
    tags = _events(tmp_path).Tags()["scalars"]
    assert "IoU/wire" not in tags, "it is NaN"
    assert len(tags) == 4 + 5 + 2


def test_an_epoch_without_validation_has_the_figures_of_its_training_alone(tmp_path: Path) -> None:
    with EventLog(tmp_path) as log:
        log.epoch(_record(2, None), NAMES)
    assert {tag.partition("/")[0] for tag in _events(tmp_path).Tags()["scalars"]} == {"epoch"}


def test_what_an_epoch_adds_is_on_the_disk_while_the_run_goes_on(tmp_path: Path) -> None:
    with EventLog(tmp_path) as log:
        log.training_step(1, loss=0.5, learning_rate=0.1)
        log.epoch(_record(2, None), NAMES)
        assert _scalars(tmp_path, "step/loss") == {1: 0.5}
        assert _scalars(tmp_path, "epoch/seconds") == {2: 3.5}


def test_the_sample_sheet_is_there_to_the_pixel(tmp_path: Path) -> None:
    sheet = np.random.default_rng(0).integers(0, 256, (12, 20, 3), np.uint8)
    PillowImage.fromarray(sheet).save(tmp_path / "sheet.png")
    with EventLog(tmp_path / "events") as log:
        log.sheet(4, tmp_path / "sheet.png")
    (event,) = _events(tmp_path / "events").Images("samples")
    assert (event.step, event.height, event.width) == (4, 12, 20)
    (tmp_path / "back.png").write_bytes(event.encoded_image_string)
    with PillowImage.open(tmp_path / "back.png") as back:
        np.testing.assert_array_equal(np.asarray(back), sheet)


def test_a_resumed_run_hides_what_was_written_after_the_step_it_goes_on_from(tmp_path: Path) -> None:
    with EventLog(tmp_path) as log:
        for step in (1, 2, 3, 4):  # step 3 and 4 are lost: the state was kept after step 2
            log.training_step(step, loss=step, learning_rate=0.1)
    with EventLog(tmp_path, resumed_step=2) as log:
        log.training_step(3, loss=30, learning_rate=0.1)
    assert _scalars(tmp_path, "step/loss") == {1: 1, 2: 2, 3: 30}
    assert len(list(tmp_path.iterdir())) == 2


def test_nan_is_left_out(tmp_path: Path) -> None:
    with EventLog(tmp_path) as log:
        log.training_step(1, loss=math.nan, learning_rate=0.5)
    assert _events(tmp_path).Tags()["scalars"] == ["step/learning_rate"]


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(OutputError, match=r"cannot write TensorBoard events to .*taken"):
        EventLog(tmp_path / "taken" / "events")


def test_without_tensorboard_one_line_says_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(MissingExtraError, match=r'pip install "segship\[tensorboard\]"'):
        EventLog(tmp_path / "events")
    assert not (tmp_path / "events").exists()
