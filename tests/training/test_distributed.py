"""One run in two processes on this machine, which do as one process does."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed import TCPStore

from segship.runtime.errors import DeviceError
from segship.training.data import DataOptions
from segship.training.distributed import join_world
from segship.training.evaluate import evaluate
from segship.training.progress import Progress
from segship.training.state import states

Start = Callable[..., Any]

CONFIG = """
data = "camvid:{tree}"
network = {{ arch = "unet", options = {{ base_channels = 4 }} }}
size = [64, 80]
device = "cpu"
workers = 1
"""

TRAINED = """
from pathlib import Path
from segship.training.config import build_config
from segship.training.settings import merged, read_config
from segship.training.distributed import join_world
from segship.training.progress import Progress
from segship.training.run import Run
from segship.training.setup import make_network, set_up

class Losses(Progress):
    def __init__(self):
        self.losses = []
    def advance(self, loss=None):
        if loss is not None:
            self.losses.append(loss)

text = Path({config_file!r}).read_text(encoding="utf-8")
config = build_config(merged(read_config(text, "it"), {settings!r}))
with join_world(config.device) as world:
    losses, out = Losses(), Path({out!r}) / str(world.rank)
    setup = set_up(config, Progress())
    run = Run(config, out, setup, make_network(config, setup.card, Progress()), world, losses)
    run.to_the_end()
    out.mkdir(exist_ok=True)
    torch.save({{"losses": losses.losses, "network": run.network.state_dict()}}, out / "came_to.pt")
"""


@pytest.fixture(scope="module")
def config_file(write_camvid: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("distributed")
    tree = write_camvid(folder / "camvid", train=12, val=3, size=(64, 80))
    (folder / "config.toml").write_text(CONFIG.format(tree=tree), encoding="utf-8")
    return folder / "config.toml"


@pytest.fixture
def processes() -> Iterator[Callable[..., list[Any]]]:
    """Start what is given twice, and keep the store by which the two find each other, as torchrun does."""
    stores: list[TCPStore] = []

    def launch(start_one: Callable[[dict[str, str]], Any]) -> list[Any]:
        stores.append(TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False))
        common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(stores[-1].port)}
        common |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}
        return [start_one({**common, "RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in range(2)]

    yield launch
    stores.clear()


@pytest.mark.parametrize(
    "settings",
    [
        {
            "epochs": 7,
            "batch_size": 4,
            "augment": {"preset": "none"},
            "optimizer": {"name": "sgd", "learning_rate": 3e-4},
        },
        {
            "epochs": 20,
            "batch_size": 5,
            "augment": {"preset": "light", "scale": [1, 1]},
            "loss": {"terms": "ce+0.5*dice", "ohem": 0.7, "class_weights": "auto", "label_smoothing": 0.1},
            "optimizer": {"learning_rate": 2e-5, "clip": 1.0, "accumulate": 2, "ema": 0.9},
        },
    ],
    ids=["plain", "uneven shares of all there is"],
)
def test_two_processes_do_what_one_does(
    start: Start, processes: Start, config_file: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    """In small steps: large ones make more of every rounding, in one process as in two."""
    settings |= {"validate_every": settings["epochs"]}

    one, first, second = _one_and_two(start, processes, config_file, tmp_path, settings)
    assert len(one["losses"]) >= 20
    assert one["losses"][0] - min(one["losses"]) > 0.01  # there was something to agree on
    assert first["losses"] == second["losses"]
    differences = torch.tensor(first["losses"][:20]) - torch.tensor(one["losses"][:20])
    assert differences.abs().max() < 1e-4


def test_weights_and_statistics_of_two_processes_are_those_of_one(
    start: Start, processes: Start, config_file: Path, tmp_path: Path
) -> None:
    settings = {"epochs": 1, "batch_size": 5, "augment.preset": "none", "optimizer.name": "sgd"}  # 2 steps
    one, first, second = (run["network"] for run in _one_and_two(start, processes, config_file, tmp_path, settings))
    assert any("running_var" in name for name in one)
    for name, tensor in one.items():
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name], tensor, atol=1e-6, rtol=1e-4)


def _one_and_two(
    start: Start, processes: Start, config_file: Path, tmp_path: Path, settings: dict[str, Any]
) -> list[dict[str, Any]]:
    """Train in one process and in two side by side; return what each of the three came to."""

    def code(out: str) -> str:
        (tmp_path / out).mkdir()
        return TRAINED.format(config_file=str(config_file), settings=settings, out=str(tmp_path / out))

    alone, together = code("one"), code("two")
    children = [start(alone), *processes(lambda environment: start(together, environment))]
    assert [child.wait() for child in children] == [(0, "", "")] * 3
    return [torch.load(tmp_path / place / "came_to.pt") for place in ("one/0", "two/0", "two/1")]


def test_figures_are_those_of_all_pictures_and_the_first_process_alone_writes(
    start: Start, processes: Start, config_file: Path, tmp_path: Path
) -> None:
    code = TRAINED.format(config_file=str(config_file), settings={"epochs": 1, "batch_size": 4}, out=str(tmp_path))
    assert [child.wait() for child in processes(lambda environment: start(code, environment))] == [(0, "", "")] * 2
    assert [path.name for path in (tmp_path / "1").iterdir()] == ["came_to.pt"]
    assert states(tmp_path / "0")
    data = re.findall('data = "(.*)"', config_file.read_text(encoding="utf-8"))[0]
    alone = evaluate(tmp_path / "0/best.safetensors", data, DataOptions(), "cpu", None, Progress())
    report = json.loads((tmp_path / "0/report.json").read_text(encoding="utf-8"))
    assert report["confusion_matrix"] == alone.matrix.counts.tolist()
    assert report["pixels"] > 0
    assert alone.card.provenance.metrics == alone.matrix.scores().summary()


def test_a_run_of_two_that_was_killed_ends_as_if_it_had_not_been(
    seg_train: Start, processes: Start, config_file: Path, tmp_path: Path
) -> None:
    kill = """
def watch(event, arguments):
    if event == "os.rename" and "/step_000000006" in str(arguments):
        os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(watch)
"""
    begun = ["--config", config_file, "--epochs", 3, "--batch-size", 4, "-q", "--out"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for child in processes(lambda environment: seg_train(*begun, whole, environment=environment)):
        assert child.wait()[0] == 0
    first, second = processes(lambda environment: seg_train(*begun, killed, environment=environment, before=kill))
    assert first.wait()[0] == -signal.SIGKILL
    status, _, err = second.wait()
    assert (status, err.count("\n")) == (1, 1)
    assert err.startswith("error: another process of the run is gone or cannot be reached")
    for child in processes(lambda environment: seg_train("--resume", killed, "-q", environment=environment)):
        assert child.wait() == (0, "", "")
    assert [path.name for path in states(killed)] == [path.name for path in states(whole)]
    for ours, theirs in zip(states(killed), states(whole), strict=True):
        assert _tensors_of(ours) == _tensors_of(theirs)
    assert (killed / "best.safetensors").read_bytes() == (whole / "best.safetensors").read_bytes()


def _tensors_of(state: Path) -> bytes:
    """Return a state without its header, which holds how long each epoch took."""
    content = state.read_bytes()
    return content[8 + int.from_bytes(content[:8], "little") :]


def test_a_broken_picture_that_one_process_meets_ends_both_with_one_line(
    seg_train: Start, processes: Start, write_camvid: Callable[..., Path], config_file: Path, tmp_path: Path
) -> None:
    tree, out = write_camvid(tmp_path / "camvid", train=12), tmp_path / "run"
    rest = ["--data", f"camvid:{tree}", "--epochs", 10_000, "--set", "cache_mb=0", "--batch-size", 4, "-q"]
    children = processes(
        lambda environment: seg_train("--config", config_file, *rest, "--out", out, environment=environment)
    )
    end = time.monotonic() + 60
    while not states(out) and time.monotonic() < end:
        time.sleep(0.01)
    broken = tree / "train/seq_003.png"
    broken.with_name("half.png").write_bytes(broken.read_bytes()[:500])
    broken.with_name("half.png").replace(broken)
    ends = [child.wait() for child in children]
    assert [status for status, *_ in ends] == [1, 1]
    said = "".join(out + err for _, out, err in ends)
    assert said.startswith(f"error: {broken}")
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--set", "loss.wings=2"], "wings"),
        (["--batch-size", "1"], "2 processes share batches of 1 pictures; expected at least one picture for each"),
        (["--data", "camvid:/nowhere/at/all"], "'/nowhere/at/all' is no folder"),
        (["--device", "cuda:1"], "--device cuda:1 names one device, and 2 processes run; expected auto, cpu or cuda"),
    ],
)
def test_processes_that_fail_alike_say_so_once(
    seg_train: Start, processes: Start, config_file: Path, tmp_path: Path, arguments: list[str], words: str
) -> None:
    command = ["--config", config_file, *arguments, "--out", tmp_path / "run"]
    ends = [child.wait() for child in processes(lambda environment: seg_train(*command, environment=environment))]
    assert [status for status, *_ in ends] == [1, 1]
    said = "".join(out + err for _, out, err in ends)
    assert said.startswith("error: ")
    assert words in said
    assert said.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_torchrun_starts_it(config_file: Path, tmp_path: Path) -> None:
    command = Path(sys.executable).with_name("seg-train")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--no-python"]
    rest = ["--config", config_file, "--epochs", 1, "--batch-size", 12, "--json", "--out", tmp_path / "run"]
    done = subprocess.run(
        [*launcher, command, *map(str, rest)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["checkpoint"] == str(tmp_path / "run/best.safetensors")
    assert done.stderr.count("epoch   1  loss") == 1


def test_the_module_runs_as_the_command(start: Start) -> None:
    code = "import runpy; sys.argv = ['x', '--version']; runpy.run_module('segship.training', run_name='__main__')"
    status, out, _ = start(code).wait()
    assert status == 0
    assert "version" in out


@pytest.mark.parametrize("size", ["two", "0", "-1", ""])
def test_a_number_of_processes_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch, size: str) -> None:
    monkeypatch.setenv("WORLD_SIZE", size)
    with pytest.raises(DeviceError, match=f"WORLD_SIZE is '{size}'; expected the number of processes"):
        join_world("cpu")


def test_several_processes_without_a_launcher_are_told_to_take_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(DeviceError, match=r"the processes did not find each other.*start them by torchrun"):
        join_world("cpu")
