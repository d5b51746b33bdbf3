import numpy as np
import pytest

from segship.training.metrics import ConfusionMatrix
from segship.training.progress import ConsoleProgress, Progress
from segship.training.report import EpochRecord


def _record(*, measured: bool = True) -> EpochRecord:
    matrix = ConfusionMatrix(2, 255)
    matrix.add(np.array([0, 0, 1, 1]), np.array([0, 0, 0, 1]))
    scores = matrix.scores() if measured else None
    return EpochRecord(
        epoch=7, step=70, learning_rate=1.5e-4, train_loss=0.12345, data_wait=0.1, scores=scores, seconds=12.4
    )


def _tell(progress: Progress) -> None:
    progress.begin("epoch 7/9 training", 2)
    progress.advance(0.75)
    progress.advance()
    progress.record(_record(), is_best=True)
    progress.note("something")


def test_the_base_keeps_everything_to_itself(capfd: pytest.CaptureFixture[str]) -> None:
    _tell(Progress())
    assert capfd.readouterr() == ("", "")


def test_quiet_shows_nothing(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    with ConsoleProgress(quiet=True) as progress:
        _tell(progress)
    assert capfd.readouterr() == ("", "")


def test_off_a_terminal_each_record_is_a_line_on_stderr_and_there_is_no_bar(capfd: pytest.CaptureFixture[str]) -> None:
    with ConsoleProgress(quiet=False) as progress:
        _tell(progress)
        progress.record(_record(measured=False), is_best=False)
    out, err = capfd.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "epoch   7  loss 0.1235  mIoU 0.5833  pixel accuracy 0.7500  mean class accuracy 0.7500  lr 1.50e-04  12 s  "
        "best",
        "something",
        "epoch   7  loss 0.1235  lr 1.50e-04  12 s",
    ]


@pytest.mark.parametrize("text", ["[bold]no[/bold] [/] [link", "coco:car:dog", "x" * 500, "a\nb", "Straße 東京"])
def test_a_note_is_shown_as_it_is(capfd: pytest.CaptureFixture[str], text: str) -> None:
    with ConsoleProgress(quiet=False) as progress:
        progress.note(text)
    assert capfd.readouterr() == ("", f"{text}\n")


def test_on_a_terminal_a_bar_tells_what_goes_on_and_is_gone_in_the_end(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with ConsoleProgress(quiet=False) as progress:
        progress.begin("epoch 7/9 training", 4)
        progress.advance(0.75)
        progress._bar.refresh()
        first = capfd.readouterr().err
        progress.begin("epoch 7/9 validation", 3)
        progress._bar.refresh()
        second = capfd.readouterr().err
        progress.record(_record(), is_best=False)
    assert all(part in first for part in ("epoch 7/9 training", "1/4", "loss 0.7500"))
    assert all(part in second for part in ("epoch 7/9 validation", "0/3"))
    assert "loss" not in second
    last = capfd.readouterr().err
    assert "mIoU" in last
    assert last.rstrip("\r").endswith(("\x1b[2K", "\x1b[?25h\r\x1b[1A\x1b[2K")), "the bar's line is cleared"


def test_an_error_inside_ends_the_bar(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    with pytest.raises(KeyboardInterrupt), ConsoleProgress(quiet=False) as progress:
        _interrupt(progress)
    assert "\x1b[?25h" in capfd.readouterr().err, "the cursor is shown again"


def _interrupt(progress: Progress) -> None:
    progress.begin("epoch 1/9 training", 4)
    raise KeyboardInterrupt
