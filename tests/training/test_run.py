"""What survives when a run is killed, interrupted, or runs out of room: in processes that really are."""

import csv
import json
import os
import re
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from segship.runtime.errors import CheckpointError, DatasetError
from segship.runtime.model_file import read_card
from segship.training.config import build_config
from segship.training.progress import Progress
from segship.training.settings import read_config
from segship.training.state import states
from segship.training.trainer import resume, train

Start = Callable[..., Any]

CONFIG = """
data = "camvid:{tree}"
network = {{ arch = "fastscnn" }}
size = [32, 40]
epochs = 2
batch_size = 4
device = "cpu"
workers = 2
precision = "bf16"
validate_every = 2
validate_unit = "steps"
augment = {{ preset = "strong" }}
loss = {{ terms = "ce+dice", ohem = 0.7, class_weights = "auto" }}
optimizer = {{ learning_rate = 0.01, ema = 0.9, clip = 1.0 }}
"""
"""Everything at once that draws, averages or remembers. 3 steps an epoch; states after steps 2, 3, 4 and 6."""

DRAWINGS = ("run.draw_curves", "run.draw_samples", "scores_report.draw_confusion")
"""They take most of the time, and change no weights."""

KILLED_AT = """
def watch(event, arguments, done=[]):
    if not done and event == {event!r} and {name!r} in str(arguments):
        done.append(True)  # a second interrupt would meet the process on its way out
        os.kill(os.getpid(), signal.{signal})
sys.addaudithook(watch)
"""

NO_ROOM_FROM = """
import resource
def watch(event, arguments):
    if event == "os.rename" and {name!r} in str(arguments):
        resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size}))
sys.addaudithook(watch)
"""
"""From that moment on no file may grow larger; for whoever writes it, as if the disk were full."""

LITTLE_MEMORY = """
import resource
def watch(event, arguments):
    if event == "os.rename" and "/config.toml" in str(arguments):
        pages = int(open("/proc/self/statm").read().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (200 << 20),) * 2)
sys.addaudithook(watch)
"""
"""200 MiB to train with."""

KILLED_FOR_IT = """
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # the kernel ends the process in the middle of the write
import resource
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
"""


class Listener(Progress):
    """Writes down notes, and which states there are at each step."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.notes: list[str] = []
        self.states: list[list[str]] = []

    def advance(self, loss: float | None = None) -> None:
        self.states.append([path.name for path in states(self.out)])

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture(scope="module")
def config_file(write_camvid: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    tree = write_camvid(folder / "camvid", train=12, val=2)
    (folder / "config.toml").write_text(CONFIG.format(tree=tree), encoding="utf-8")
    return folder / "config.toml"


@pytest.fixture(scope="module")
def whole(config_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run without an interruption."""
    out = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patch:
        for drawing in DRAWINGS:
            patch.setattr(f"segship.training.{drawing}", lambda *_: None)
        train(build_config(read_config(config_file.read_text(encoding="utf-8"), "it")), out, Progress())
    return out


@pytest.fixture
def broken_off(whole: Path, tmp_path: Path) -> Path:
    """The same, as if it had been killed after its last state: a copy to spoil."""
    return Path(shutil.copytree(whole, tmp_path / "run"))


def _tensors(path: Path) -> dict[str, torch.Tensor]:
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is no dict


def _progress(path: Path) -> Any:
    """What a state tells of the run, but for how long it took."""
    with safe_open(path, "pt") as file:
        progress = json.loads(file.metadata()["progress"])
    for record in progress["position"]["records"]:
        del record["seconds"], record["data_wait"]
    return progress


def _rows(out: Path) -> list[dict[str, str]]:
    with (out / "metrics.csv").open(encoding="utf-8") as file:
        return [{k: v for k, v in row.items() if k not in ("seconds", "data_wait")} for row in csv.DictReader(file)]


def assert_same_end(out: Path, whole: Path) -> None:
    """Compare all that two runs came to, bit for bit."""
    assert [path.name for path in states(out)] == [path.name for path in states(whole)]
    for path in ("best.safetensors", *(f"last/{path.name}" for path in states(whole))):
        ours, theirs = _tensors(out / path), _tensors(whole / path)
        assert ours.keys() == theirs.keys()
        assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == [], path
        assert read_card(out / path) == read_card(whole / path)
    for one, other in zip(states(out), states(whole), strict=True):
        assert _progress(one) == _progress(other)
    assert _rows(out) == _rows(whole)
    ours, theirs = ({str(path.relative_to(run)) for path in run.rglob("*")} for run in (out, whole))
    assert ours == theirs  # nothing half-written is left


def _wait_for(path: Path, child: Any) -> None:
    end = time.monotonic() + 60
    while not path.exists():
        assert child.process.is_alive(), child.err.read_text(encoding="utf-8")
        assert time.monotonic() < end
        time.sleep(0.001)


def test_the_reference_validated_kept_and_left_what_it_should(whole: Path) -> None:
    assert [row["step"] for row in _rows(whole)] == ["2", "3", "4", "6"]
    assert [row["step"] for row in _rows(whole) if row["miou"]] == ["2", "4", "6"]
    assert [path.name for path in states(whole)] == ["step_000000006.safetensors", "step_000000004.safetensors"]
    assert not all(
        torch.equal(*pair) for pair in zip(*(_tensors(path).values() for path in states(whole)), strict=True)
    )


@pytest.mark.parametrize(
    ("event", "name", "kept"),
    [
        ("os.rename", "/metrics.csv", []),
        ("os.rename", "/step_000000004", [3, 2]),
        ("os.remove", "/step_000000002", [4, 3, 2]),
        ("os.rename", "/step_000000006", [4, 3]),
    ],
    ids=[
        "between the first checkpoint and its state",
        "before a state has its name",
        "before an old state goes",
        "before the last state",
    ],
)
def test_a_run_killed_at_a_delicate_moment_ends_as_if_it_had_not_been(
    seg_train: Start, config_file: Path, whole: Path, tmp_path: Path, event: str, name: str, kept: list[int]
) -> None:
    out = tmp_path / "run"
    kill = KILLED_AT.format(event=event, name=name, signal="SIGKILL")
    assert seg_train("--config", config_file, "--out", out, before=kill).wait()[0] == -signal.SIGKILL
    assert [path.name for path in states(out)] == [f"step_{step:09}.safetensors" for step in kept]
    status, _, err = seg_train("--resume", out).wait()
    assert status == 0, err
    told = f"going on after step {kept[0]} of 6\n" if kept else f"{out} holds no state yet; the run begins anew\n"
    assert err.startswith(told)
    assert_same_end(out, whole)


def test_a_run_killed_from_outside_when_its_first_state_appears_ends_as_if_it_had_not_been(
    seg_train: Start, config_file: Path, whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    child = seg_train("--config", config_file, "--out", out)
    _wait_for(out / "last/step_000000002.safetensors", child)
    child.kill()
    assert child.wait()[0] == -signal.SIGKILL
    assert seg_train("--resume", out).wait()[0] == 0
    assert_same_end(out, whole)


def test_a_run_killed_again_and_again_ends_as_if_it_had_not_been(
    seg_train: Start, config_file: Path, whole: Path, tmp_path: Path
) -> None:
    out, lives, status = tmp_path / "run", 0, -signal.SIGPROF
    while status == -signal.SIGPROF:
        lives += 1
        timer = (
            f"\nsignal.setitimer(signal.ITIMER_PROF, {0.2 + lives / 20})"  # of the processor's time, so that this ends
        )
        begun = (out / "config.toml").exists()
        arguments = ["--resume", out] if begun else ["--config", config_file, "--out", out]
        status, _, err = seg_train(*arguments, before=timer).wait()
    assert status == 0, err
    assert lives > 2
    assert_same_end(out, whole)


def test_a_run_killed_in_the_middle_of_writing_a_state_goes_on_from_the_one_before(
    seg_train: Start, config_file: Path, whole: Path, tmp_path: Path
) -> None:
    out, size = tmp_path / "run", 10_000_000
    limit = KILLED_FOR_IT + NO_ROOM_FROM.format(name="/step_000000003", size=size)
    assert seg_train("--config", config_file, "--out", out, before=limit).wait()[0] == -signal.SIGXFSZ
    half = max((out / "last").glob(".*"), key=lambda path: path.stat().st_mtime_ns)
    assert half.stat().st_size <= size < states(out)[0].stat().st_size
    status, _, err = seg_train("--resume", out).wait()
    assert status == 0, err
    assert err.startswith("going on after step 3 of 6\n")
    assert_same_end(out, whole)


def _cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def _turn_a_bit(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(-1000, os.SEEK_END)
        byte = file.read(1)[0]
        file.seek(-1000, os.SEEK_END)
        file.write(bytes([byte ^ 1]))


@pytest.mark.parametrize(("spoil", "words"), [(_cut, "is cut short"), (_turn_a_bit, "is damaged")])
def test_a_spoiled_state_is_recognised_and_the_one_before_it_used(
    broken_off: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Path], None], words: str
) -> None:
    newest, older = states(broken_off)
    spoil(newest)
    for drawing in DRAWINGS:
        monkeypatch.setattr(f"segship.training.{drawing}", lambda *_: None)
    listener = Listener(broken_off)
    resume(broken_off, listener)
    warning, going_on = listener.notes
    assert warning.startswith(f"warning: {newest} {words}")
    assert warning.endswith("; taking the state before it")
    assert going_on == "going on after step 4 of 6"
    assert listener.states[0] == [older.name]  # what is spoiled is gone: it would count as one that is kept
    assert_same_end(broken_off, whole)


def test_a_run_whose_states_are_all_spoiled_begins_anew(seg_train: Start, broken_off: Path, whole: Path) -> None:
    for path in states(broken_off):
        _cut(path)
    status, _, err = seg_train("--resume", broken_off).wait()
    assert status == 0, err
    lines = err.splitlines()
    assert [line.startswith("warning: ") for line in lines[:3]] == [True, True, False]
    assert lines[2] == f"{broken_off} holds no state yet; the run begins anew"
    assert_same_end(broken_off, whole)


def test_resuming_a_run_that_is_over_says_so_and_changes_nothing(broken_off: Path) -> None:
    def everything() -> dict[Path, tuple[int, bytes]]:
        return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in broken_off.rglob("*.*")}

    before, listener = everything(), Listener(broken_off)
    result = resume(broken_off, listener)
    assert listener.notes == [f"the run in {broken_off} is over; nothing is left to do"]
    assert everything() == before
    assert result.best.scores is not None
    assert result.scores.summary() == read_card(broken_off / "best.safetensors").provenance.metrics
    assert [record.step for record in result.records] == [2, 3, 4, 6]


def test_a_folder_without_a_run_cannot_be_resumed(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds no run that can be resumed: config\.toml cannot be read"):
        resume(tmp_path, Progress())


def test_a_run_does_not_go_on_with_other_data(broken_off: Path, write_camvid: Callable[..., Path]) -> None:
    states(broken_off)[0].unlink()
    path = broken_off / "config.toml"
    grown = write_camvid(broken_off / "camvid", train=13, val=2)
    lines = path.read_text(encoding="utf-8").splitlines()
    lines[0] = f'data = "camvid:{grown}"'
    path.write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(
        DatasetError, match=r"began with 12 pictures to train on and 2 held out.*has 13 and 2; expected"
    ):
        resume(broken_off, Progress())


def test_as_many_states_are_kept_as_were_asked_for(seg_train: Start, config_file: Path, tmp_path: Path) -> None:
    assert seg_train("--config", config_file, "--keep", 3, "--out", tmp_path / "run").wait()[0] == 0
    assert [path.name for path in states(tmp_path / "run")] == [f"step_{step:09}.safetensors" for step in (6, 4, 3)]


def test_a_full_disk_ends_the_run_in_one_line_and_with_room_it_goes_on(
    seg_train: Start, config_file: Path, whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    limit = NO_ROOM_FROM.format(name="/step_000000003", size=10_000_000)
    status, _, err = seg_train("--config", config_file, "--out", out, "-q", before=limit).wait()
    assert (status, err.count("\n")) == (1, 1)
    assert err.startswith(f"error: cannot write {out / 'last/step_000000004.safetensors'}: ")
    assert err.endswith(f"and go on with seg-train --resume {out}\n")
    assert list(out.rglob(".*")) == []
    status, _, err = seg_train("--resume", out).wait()
    assert status == 0, err
    assert err.startswith("going on after step 3 of 6\n")
    assert_same_end(out, whole)


def test_a_disk_that_is_full_at_once_leaves_nothing_half_written(
    seg_train: Start, config_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    limit = NO_ROOM_FROM.format(name="/config.toml", size=1_000_000)
    status, _, err = seg_train("--config", config_file, "--out", out, "-q", before=limit).wait()
    assert (status, err.count("\n")) == (1, 1)
    assert err.startswith(f"error: cannot write {out / 'best.safetensors'}: ")
    assert [path.name for path in out.iterdir()] == ["config.toml"]


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs to know how much memory it has")
def test_where_memory_ends_one_line_says_what_to_lower(seg_train: Start, config_file: Path, tmp_path: Path) -> None:
    arguments = ["--arch", "unet", "--size", "256", "--batch-size", 12, "--augment", "none", "--workers", 1]
    command = ["--config", config_file, *arguments, "--out", tmp_path / "run", "-q"]
    status, out, err = seg_train(*command, before=LITTLE_MEMORY).wait()
    assert (status, out) == (1, "")
    assert err.startswith("error: memory is too small for batches of 12 pictures of 256×256; lower --batch-size")
    assert err.count("\n") == 1


def test_ctrl_c_leaves_whole_files_says_how_to_go_on_and_exits_with_130(
    seg_train: Start, config_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    interrupt = KILLED_AT.format(event="os.rename", name="/step_000000004", signal="SIGINT")
    status, _, err = seg_train("--config", config_file, "--out", out, before=interrupt).wait()
    assert status == 130
    assert err.endswith(f"go on with: seg-train --resume {out}\n\nerror: interrupted; what was finished is whole\n")
    assert states(out)
    assert list(out.rglob(".*")) == []


def test_ctrl_c_before_the_first_step_has_nothing_to_go_on_with(
    seg_train: Start, config_file: Path, tmp_path: Path
) -> None:
    interrupt = KILLED_AT.format(event="open", name="seq_001.png", signal="SIGINT")
    status, _, err = seg_train("--config", config_file, "--out", tmp_path / "run", before=interrupt).wait()
    assert (status, err) == (130, "\nerror: interrupted; what was finished is whole\n")
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_no_number_ends_the_run_and_leaves_what_was_good(seg_train: Start, broken_off: Path) -> None:
    states(broken_off)[0].unlink()
    config = broken_off / "config.toml"
    config.write_text(config.read_text(encoding="utf-8").replace('terms = "ce+dice"', 'terms = "1e39*ce"'), "utf-8")
    before = {path: path.read_bytes() for path in broken_off.rglob("*.*")}
    status, _, err = seg_train("--resume", broken_off, "-q").wait()
    assert (status, err.count("\n")) == (1, 1)
    assert re.match(r"error: the loss became (inf|nan) in step 5; lower --lr \(it is 0\.01\); ", err)
    assert err.endswith(f"{broken_off / 'best.safetensors'} is whole, and --init starts a run from it\n")
    assert {path: path.read_bytes() for path in broken_off.rglob("*.*")} == before


def test_weights_that_are_no_numbers_are_not_kept(seg_train: Start, config_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    rest = ["--lr", "3e38", "--loss", "1e3*ce", "--batch-size", 12, "--set", "validate_every=3"]
    optimizer = ["--set", "optimizer.name=sgd", "--set", "optimizer.clip=0"]
    status, _, err = seg_train("--config", config_file, *rest, *optimizer, "--out", out, "-q").wait()
    assert (status, err) == (1, "error: the weights are no numbers any more after step 1; lower --lr (it is 3e+38)\n")
    assert [path.name for path in out.iterdir()] == ["config.toml"]
