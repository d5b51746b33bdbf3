"""Jobs on a Ray cluster: two nodes on this machine, one worker each."""

import importlib.util
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PillowImage

from segship.runtime.backends.options import EngineOptions
from segship.runtime.errors import (
    BackendError,
    DeviceError,
    EngineCrashError,
    ImageError,
    MissingExtraError,
    ModelError,
    SegshipError,
)
from segship.runtime.outputs import OutputKind
from segship.runtime.ray_job import run_on_ray
from segship.runtime.segmenter import Segmenter

# Ray warns of itself: of its own deprecated settings, and of processes and sockets that it leaves to the collector.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning:ray"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason='pip install "segship[ray]"')
KINDS: tuple[OutputKind, ...] = ("mask", "overlay")
SLOW_ENGINE = """
import os, signal, time
import numpy as np
from segship.runtime.backends import EngineInfo

class SlowEngine:
    '''Takes so long that a worker is killed in the middle of something; dies of a white picture.'''

    def __init__(self, model, card, device, options):
        self.card, self.info = card, EngineInfo("slow", "Slow 1.0", "cpu", "fp32", options.cpu_threads)

    def run(self, batch):
        if batch.min() > 2.2:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.1)
        ramp = np.arange(6, dtype=np.float32).reshape(1, 6, 1, 1)
        return ((batch.sum(1, keepdims=True) * ramp) % 7).astype(np.float32)

    def close(self):
        pass
"""


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Start a cluster of two nodes with one CPU each, whose workers find an engine called ``slow``."""
    place = tmp_path_factory.mktemp("installed")
    (place / "slow-1.0.dist-info").mkdir()
    (place / "slow.py").write_text(SLOW_ENGINE)
    (place / "slow-1.0.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: slow\nVersion: 1.0\n")
    (place / "slow-1.0.dist-info/entry_points.txt").write_text("[segship.backends]\nslow = slow:SlowEngine\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(place), *filter(None, sys.path)]))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.syspath_prepend(place)
        from ray.cluster_utils import Cluster

        cluster: Any = Cluster()
        for _ in range(2):
            cluster.add_node(num_cpus=1, include_dashboard=False, object_store_memory=80 << 20)
        yield cluster.address
        cluster.shutdown()


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    """Twenty pictures that differ; one of them is damaged."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(5)
    paths = [folder / f"{number:02}.png" for number in range(20)]
    for path in paths:
        PillowImage.fromarray(rng.integers(0, 200, (30, 40, 3), np.uint8)).save(path)
    paths[7].write_bytes(paths[7].read_bytes()[:300])
    return paths


class Log:
    """What a job reports."""

    def __init__(self) -> None:
        self.records: dict[int, dict[str, Any]] = {}
        self.errors: dict[int, SegshipError] = {}

    def result(self, number: int, record: dict[str, Any]) -> None:
        assert number not in self.records
        self.records[number] = record

    def error(self, number: int, error: SegshipError) -> None:
        assert number not in self.errors
        self.errors[number] = error


def _content(folder: Path) -> dict[str, bytes]:
    """Return all files below a folder but those that a killed worker could not finish, which are hidden."""
    files = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def _workers() -> list[int]:
    """Return the processes of the workers: those that this process's cluster started."""
    parents, found = {}, []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            if b"RayWorker" in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
        except (OSError, ValueError):
            continue  # it has ended meanwhile

    def is_ours(pid: int) -> bool:
        while pid in parents and pid != os.getpid():
            pid = parents[pid]
        return pid == os.getpid()

    return [pid for pid in found if is_ours(pid)]


@needs_ray
@pytest.mark.ray
@pytest.mark.skipif(sys.platform != "linux", reason="workers are found in /proc")
def test_a_killed_worker_loses_no_picture_and_doubles_none(
    address: str, pictures: list[Path], conv_model: Path, tmp_path: Path
) -> None:
    killed: list[int] = []
    log = Log()

    def kill_one(number: int, record: dict[str, Any]) -> None:
        log.result(number, record)
        if not killed:
            killed.append(_workers()[0])
            os.kill(killed[0], signal.SIGKILL)

    items = [(path, Path("deep") / path.stem) for path in pictures]
    summary = run_on_ray(
        address,
        conv_model,
        items,
        out=tmp_path / "far",
        kinds=KINDS,
        segmenter_args={"backend": "slow"},
        on_result=kill_one,
        on_error=log.error,
    )
    assert (summary.done, summary.failed, summary.workers) == (19, 1, 2)
    assert [engine.engine for engine in summary.engines] == ["Slow 1.0"]
    assert sorted(log.records) == [number for number in range(20) if number != 7]
    assert list(log.errors) == [7]
    assert isinstance(log.errors[7], ImageError)
    assert "07.png" in str(log.errors[7])
    assert killed[0] not in _workers()

    with Segmenter(conv_model, backend="slow", options=EngineOptions(threads=1)) as segmenter:
        for path, name in items[:7] + items[8:]:
            segmenter(path).save(tmp_path / "near", KINDS, name=name)
    assert _content(tmp_path / "far") == _content(tmp_path / "near")
    record = log.records[3]
    assert record["source"] == str(pictures[3])
    assert record["outputs"] == {kind: str(tmp_path / f"far/{kind}/deep/03.png") for kind in KINDS}
    assert sum(area["pixels"] for area in record["areas"].values()) == 30 * 40


@needs_ray
@pytest.mark.ray
def test_a_picture_that_workers_die_of_is_reported_and_the_others_are_done(
    address: str, pictures: list[Path], conv_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    PillowImage.new("RGB", (40, 30), (255, 255, 255)).save(pictures[5])
    monkeypatch.chdir(pictures[0].parent)
    log = Log()
    summary = run_on_ray(
        address,
        conv_model,
        [(Path(path.name), Path(path.stem)) for path in pictures[3:7]] + [(ImageError("it is gone"), Path("gone"))],
        out=Path("../out"),
        kinds=("mask",),
        segmenter_args={"backend": "slow", "only": ["ball"]},
        on_result=log.result,
        on_error=log.error,
    )
    assert (summary.done, summary.failed) == (3, 2)
    assert isinstance(log.errors[2], EngineCrashError)
    assert "05.png: 2 workers died while they did it" in str(log.errors[2])
    assert str(log.errors[4]) == "it is gone"
    assert sorted(_content(tmp_path / "out")) == ["mask/03.png", "mask/04.png", "mask/06.png"]
    assert log.records[0]["source"] == "03.png"
    assert log.records[0]["outputs"] == {"mask": "../out/mask/03.png"}
    assert list(log.records[0]["areas"]) == ["ball"]


@needs_ray
@pytest.mark.ray
def test_what_stops_a_segmenter_on_one_machine_stops_the_job(
    address: str, pictures: list[Path], conv_model: Path, tmp_path: Path
) -> None:
    items = [(path, Path(path.stem)) for path in pictures[:2]]
    (tmp_path / "broken.onnx").write_bytes(conv_model.read_bytes()[:-100])
    with pytest.raises(ModelError, match=r"broken\.onnx"):
        run_on_ray(address, tmp_path / "broken.onnx", items, out=tmp_path, kinds=())
    with pytest.raises(DeviceError, match="cuda was asked for, but the Ray cluster has no GPUs; use --device cpu"):
        run_on_ray(address, conv_model, items, out=tmp_path, kinds=(), segmenter_args={"device": "cuda"})
    with pytest.raises(DeviceError, match="Ray gives each worker a GPU of its own; use --device cuda"):
        run_on_ray(address, conv_model, items, out=tmp_path, kinds=(), segmenter_args={"device": "cuda:1"})
    with pytest.raises(BackendError, match=r"2 threads were asked for, but no machine .* more than 1 CPUs"):
        run_on_ray(
            address, conv_model, items, out=tmp_path, kinds=(), segmenter_args={"options": EngineOptions(threads=2)}
        )


@needs_ray
@pytest.mark.ray
@pytest.mark.parametrize("address", ["127.0.0.1:1", "nothing"])
def test_a_cluster_that_is_not_there_is_an_error_soon(address: str, conv_model: Path, tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=rf"no Ray cluster can be reached at '{address}' .*; expected HOST:PORT"):
        run_on_ray(address, conv_model, [(tmp_path / "a.png", Path("a"))], out=tmp_path, kinds=())


@needs_ray
@pytest.mark.ray
def test_without_an_address_of_a_cluster_one_is_started_here(
    pictures: list[Path], conv_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    log = Log()
    items = [(path, Path(path.stem)) for path in pictures[:3]]
    summary = run_on_ray("local", conv_model, items, out=tmp_path / "out", kinds=("mask",), on_result=log.result)
    assert summary.done == 3
    assert sorted(_content(tmp_path / "out")) == ["mask/00.png", "mask/01.png", "mask/02.png"]
    assert capfd.readouterr() == ("", "")


def test_without_ray_the_error_says_how_to_install_it(
    conv_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setitem(sys.modules, "ray.data", None)
    with pytest.raises(MissingExtraError, match=r'pip install "segship\[ray\]"'):
        run_on_ray("local", conv_model, [], out=tmp_path, kinds=())
