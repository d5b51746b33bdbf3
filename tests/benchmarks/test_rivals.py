"""segship and its rivals in turns: with real processes, of contenders made up here; what they measure is for people."""

import dataclasses
import json
import os
import subprocess
import sys
import time
import zipfile
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console

from segship.benchmarks import ordinary_inference, rival_contenders, rivals
from segship.benchmarks.rival_contenders import Contender, Duel, Workshop, ordinary_settings, rembg_duel
from segship.benchmarks.rival_environment import Environment, folder_bytes, make_environment, make_own_environment
from segship.benchmarks.rival_openvino import BenchmarkApp
from segship.benchmarks.rival_process import RivalError, Turn, Worker, run_program, seconds_to_first_picture
from segship.benchmarks.rival_report import Match, RivalReport, Side, notes, rival_table, write_report
from segship.runtime.model_file import read_card

PYTHON = Path(sys.executable)
CONTENDER = r"""
import os, sys, time
from pathlib import Path

def open_contender(settings):
    print("loading")  # is no answer
    def files(count):
        with Path(settings["log"]).open("a") as log:
            log.write(f"{settings['name']} files {count}\n")
        if count == settings.get("dies_at"):
            sys.stderr.write("no memory left for tensors\n")
            os._exit(7)
        time.sleep(settings.get("sleeps_s", 0.001) * count)
    def network(count):
        raise ValueError("this network has no end")
    return {"files": files, "network": network}
"""
APP = """
import json, sys
folder, hint = (sys.argv[sys.argv.index(name) + 1] for name in ("-report_folder", "-hint"))
assert sys.argv[sys.argv.index("-ip") + 1] == sys.argv[sys.argv.index("-infer_precision") + 1] == "f32"
runs = {"latency": "4", "throughput": "10"}[hint]
told = {"latency (ms)": "9.0", "total execution time (ms)": "1000.0", "total number of iterations": runs}
open(folder + "/benchmark_report.json", "w").write(json.dumps({"execution_results": told}))
"""


@pytest.fixture
def contender(tmp_path: Path) -> Path:
    path = tmp_path / "contender.py"
    path.write_text(CONTENDER)
    return path


@pytest.fixture
def workshop(tmp_path: Path) -> Workshop:
    return Workshop(tmp_path / "model.onnx", None, (tmp_path / "a.jpg",), tmp_path / "work", tmp_path / "environments")


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def wait_for_the_end_of(pid: int) -> None:
    """Wait until the system has taken note of it."""
    deadline = time.monotonic() + 30
    while is_alive(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not is_alive(pid) or " Z " in Path(f"/proc/{pid}/stat").read_text()


def side(contender: Path, tmp_path: Path, name: str, size: int, **settings: object) -> Contender:
    """A contender of this Python, whose command writes a picture of one byte."""
    given = {"log": str(tmp_path / "log"), "name": name} | settings
    write = "import sys; from pathlib import Path; Path(sys.argv[1], 'mask.png').write_bytes(b'1')"
    return Contender(
        name,
        "nothing",
        Environment(tmp_path / name, size),
        ("numpy",),
        lambda: Worker(PYTHON, contender, given),
        lambda out: [PYTHON, "-c", write, out],
    )


def test_both_take_turns_on_the_same_pictures_and_the_first_of_a_turn_changes(contender: Path, tmp_path: Path) -> None:
    us, them = side(contender, tmp_path, "us", 100), side(contender, tmp_path, "them", 300, sleeps_s=0.02)
    workshop = Workshop(tmp_path, None, (), tmp_path / "work", tmp_path)
    match = rivals.play("it", lambda _: Duel(us, them, ("files",), 5), workshop, 2)
    assert match.error is None
    assert (tmp_path / "log").read_text().splitlines() == [
        *("us files 3", "them files 3"),  # warm
        *("us files 5", "them files 5", "them files 5", "us files 5"),
    ]
    assert match.ours is not None
    assert match.theirs is not None
    for measured in (match.ours.samples, match.theirs.samples):
        assert {name: len(samples) for name, samples in measured.items()} == {
            "install": 1,
            "files": 2,
            "cold_start": 2,
            **({"peak": 1} if sys.platform == "linux" else {}),
        }
    assert min(match.theirs.samples["files"]) >= 0.02
    assert min(match.ours.samples["cold_start"]) > 0
    ratio = match.ratio("install")
    assert ratio is not None
    assert ratio.median == 3


class Steady:
    """Takes 50 ms for each run of its network, by its own clock."""

    def __init__(self) -> None:
        self.counts: list[int] = []

    def run(self, _: str, count: int) -> Turn:
        self.counts.append(count)
        return Turn(0.05 * count, None)

    def close(self) -> None:
        self.counts.append(0)


def test_a_turn_of_bare_runs_takes_seconds_however_few_pictures_there_are(tmp_path: Path) -> None:
    us, them = Steady(), Steady()
    first, second = (
        Contender(name, "", Environment(tmp_path, 0), (), lambda it=it: it)  # type: ignore[misc]
        for name, it in (("us", us), ("them", them))
    )
    ours: rivals.Samples = defaultdict(list)
    theirs: rivals.Samples = defaultdict(list)
    rivals.measure(Duel(first, second, ("network",), 2), tmp_path, 1, ours, theirs)
    assert us.counts == [2, 20, 80, 0]
    assert them.counts == [2, 80, 0]
    assert ours["network"] == theirs["network"] == [pytest.approx(0.05)]


def test_a_rival_that_dies_keeps_what_was_measured_and_says_why(
    contender: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    us, them = side(contender, tmp_path, "us", 100), side(contender, tmp_path, "them", 300, dies_at=4)
    workshop = Workshop(tmp_path, None, (), tmp_path / "work", tmp_path)
    match = rivals.play("it", lambda _: Duel(us, them, ("files",), 4), workshop, 2)
    assert match.error == "contender ended with status 7: no memory left for tensors"
    assert match.ratio("install") is not None
    assert match.ratio("files") is None
    assert "no memory left for tensors" in capsys.readouterr().err


def test_a_worker_says_its_fault_and_leaves_no_process(contender: Path, tmp_path: Path) -> None:
    with Worker(PYTHON, contender, {"log": str(tmp_path / "log"), "name": "it"}) as worker:
        assert worker.run("files", 1).seconds >= 0.001
        pid = worker._process.pid
        with pytest.raises(RivalError, match="status 1: ValueError: this network has no end"):
            worker.run("network", 1)
        assert not is_alive(pid)
        with pytest.raises(RivalError, match="status 1"):
            worker.run("files", 1)


def test_a_worker_that_takes_too_long_is_ended(contender: Path, tmp_path: Path) -> None:
    settings = {"log": str(tmp_path / "log"), "name": "it", "sleeps_s": 600}
    with Worker(PYTHON, contender, settings) as worker:
        pid = worker._process.pid
        with pytest.raises(RivalError, match=r"contender took longer than 0\.2 s"):
            worker.run("files", 1, limit_s=0.2)
        assert not is_alive(pid)


def test_a_worker_that_cannot_start_says_why(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("import there_is_no_such_module\n")
    with pytest.raises(RivalError, match=r"broken ended with status 1: ModuleNotFoundError.*there_is_no_such_module"):
        Worker(PYTHON, tmp_path / "broken.py", {})
    with pytest.raises(RivalError, match=r"cannot start .*nowhere: No such file"):
        Worker(tmp_path / "nowhere", tmp_path / "broken.py", {})


@pytest.mark.skipif(os.name == "nt", reason="process groups")
def test_an_interrupted_program_leaves_no_child(tmp_path: Path) -> None:
    parent = (
        "import pathlib, subprocess, sys;"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']);"
        "pathlib.Path(sys.argv[1]).write_text(str(child.pid)); child.wait()"
    )
    told = tmp_path / "pid"

    def watch(_: int) -> None:
        if told.exists() and told.read_text():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_program([PYTHON, "-c", parent, told], watch=watch)
    wait_for_the_end_of(int(told.read_text()))


@pytest.mark.skipif(os.name == "nt", reason="process groups")
def test_a_program_that_has_ended_leaves_no_child(tmp_path: Path) -> None:
    parent = (
        "import pathlib, subprocess, sys;"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']);"
        "pathlib.Path(sys.argv[1]).write_text(str(child.pid))"
    )
    run_program([PYTHON, "-c", parent, tmp_path / "pid"])
    wait_for_the_end_of(int((tmp_path / "pid").read_text()))


def test_no_contender_inherits_what_one_alone_might_heed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PYTHONPATH", "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("KEPT", "1")
    program = (
        "import os, sys; sys.exit(sorted({'PYTHONPATH', 'OMP_NUM_THREADS', 'KEPT'} & set(os.environ)) != ['KEPT'])"
    )
    run_program([PYTHON, "-c", program])


def test_a_program_that_fails_or_takes_too_long_is_an_error() -> None:
    with pytest.raises(RivalError, match="status 3: the end"):
        run_program([PYTHON, "-c", "import sys; sys.stderr.write('the end'); sys.exit(3)"])
    with pytest.raises(RivalError, match=r"took longer than 0\.1 s"):
        run_program([PYTHON, "-c", "import time; time.sleep(60)"], limit_s=0.1)


def test_the_first_picture_is_timed_when_it_is_there_and_not_at_the_end(tmp_path: Path) -> None:
    program = (
        "import os, sys, time; out = sys.argv[1] + '/mask/'; os.makedirs(out); open(out + '.a.png', 'w').write('half');"
        "os.rename(out + '.a.png', out + 'a.png'); time.sleep(1)"
    )
    start = time.perf_counter()
    first = seconds_to_first_picture([PYTHON, "-c", program, tmp_path / "out"], tmp_path / "out")
    assert first < time.perf_counter() - start - 0.1
    with pytest.raises(RivalError, match="wrote no picture"):
        seconds_to_first_picture([PYTHON, "-c", "pass"], tmp_path / "empty")


def test_an_environment_is_made_once_with_what_was_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    wheel = tmp_path / "little-1.5-py3-none-any.whl"
    _write_wheel(wheel, "little", "1.5", "x" * 1000)
    folder = tmp_path / "environment"
    made = make_environment(folder, [str(wheel)])
    assert made.versions(["little", "numpy"]) == {"little": "1.5"}
    assert 1000 < made.install_bytes < 10_000  # pip itself has megabytes
    run_program([made.python, "-c", "import little"])
    (folder / "mark").touch()
    assert make_environment(folder, [str(wheel)]) == made
    assert (folder / "mark").exists()
    with pytest.raises(RivalError, match=r"cannot install nowhere==1.0: ERROR: No matching distribution found"):
        make_environment(folder, ["nowhere==1.0"])
    assert not (folder / "mark").exists()


def test_an_own_environment_has_the_engine_that_its_rival_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(RivalError, match=r"cannot install \S*\[cpu\]\S* onnxruntime==9\.9\.9"):
        make_own_environment(tmp_path / "environment", "cpu", ["onnxruntime==9.9.9"])


def test_ultralytics_exports_once_for_both_duels(
    tiny_model: Path, workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Environment(workshop.environments, 1)
    monkeypatch.setattr(rival_contenders, "make_environment", lambda *_: made)
    monkeypatch.setattr(rival_contenders, "make_own_environment", lambda *_: made)
    yolo, log = made.program("yolo"), workshop.environments / "log"
    yolo.parent.mkdir(parents=True)
    workshop.folder.mkdir()
    yolo.write_text(f"#!/bin/sh\necho $1 >> {log}\necho graph > yolo26n-sem.onnx\n")
    yolo.chmod(0o755)
    shared = dataclasses.replace(workshop, model=tiny_model)
    for duel in (rival_contenders.ultralytics_duel(shared), rival_contenders.same_file_duel(shared)):
        assert duel.theirs.command is not None
        (given,) = (word for word in map(str, duel.theirs.command(Path("out"))) if word.startswith("model="))
        assert Path(given.removeprefix("model=")).read_text() == "graph\n"
    assert log.read_text() == "export\n"


def test_a_rival_that_cannot_be_installed_is_a_row(workshop: Workshop) -> None:
    def prepare(workshop: Workshop) -> Duel:
        raise RivalError("cannot install it", "ERROR: No matching distribution found for it\nand a hint\n")

    match = rivals.play("it", prepare, workshop, 1)
    assert match == Match("it", 0, error="cannot install it: ERROR: No matching distribution found for it")


def test_rembg_without_its_model_says_what_to_give(workshop: Workshop) -> None:
    assert "--binary FILE.onnx" in (rivals.play("rembg", rembg_duel, workshop, 1).error or "")


def test_the_bytes_of_a_folder_are_those_of_its_files(tmp_path: Path) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/b/file").write_bytes(b"12345")
    (tmp_path / "a/file").write_bytes(b"678")
    (tmp_path / "a/same").hardlink_to(tmp_path / "a/file")
    assert folder_bytes(tmp_path) == 8
    (tmp_path / "link").symlink_to(tmp_path / "a/b/file")
    assert folder_bytes(tmp_path) == 8 + len(str(tmp_path / "a/b/file"))


def test_benchmark_app_is_asked_by_its_hints(tmp_path: Path) -> None:
    app = tmp_path / "app"
    app.write_text(f"#!{sys.executable}\n{APP}")
    app.chmod(0o755)
    contestant = BenchmarkApp(app, tmp_path / "model.onnx", 1)
    assert contestant.run("network", 4).seconds == pytest.approx(4 * 0.25)
    assert contestant.run("at_once", 4).seconds == pytest.approx(4 * 0.1)
    app.write_text(f"#!{sys.executable}\n{APP.replace('total number', 'number')}")
    with pytest.raises(RivalError, match="told no figures"):
        contestant.run("network", 1)


def test_the_report_shows_figures_ratios_and_what_failed(tmp_path: Path) -> None:
    ours = Side("segship on ort", "masks, PNG", {"segship": "1"}, {"files": (0.01, 0.02, 0.01), "install": (10e6,)})
    theirs = Side("rembg", "masks, PNG", {"rembg": "2"}, {"files": (0.02, 0.06), "install": (40e6,)})
    broken = Match("openvino", 0, error="cannot install it")
    report = RivalReport("now", "rivals", 3, {"CPU": "one"}, (Match("rembg", 5, ours, theirs, "it died"), broken))
    write_report(report, tmp_path)
    text = (tmp_path / "rivals.md").read_text()
    assert (
        "| rembg | files in, files out, ms a picture | 10.0 (10.0 to 20.0) | 40.0 (20.0 to 60.0) | 2.50 (2.00 to 3.00)"
        in text
    )
    assert "| rembg | installed, MB | 10 | 40 | 4.00 | – |" in text
    assert "| rembg | not measured: it died |" in text
    assert "| openvino | not measured: cannot install it |" in text
    assert "rembg (rembg 2) writes masks, PNG" in text
    kept = json.loads((tmp_path / "rivals.json").read_text())
    assert kept["matches"][0]["ours"]["samples"]["files"] == [0.01, 0.02, 0.01]
    console = Console(width=150)
    with console.capture() as shown:
        console.print(rival_table(report))
    assert "2.50 (2.00 to 3.00)" in shown.get()
    assert "openvino was not measured to the end: cannot install it" in list(notes(report))


def test_six_rounds_give_an_interval() -> None:
    ours, theirs = (Side(name, "", {}, {"files": (base,) * 6}) for name, base in (("us", 1.0), ("them", 2.0)))
    ratio = Match("it", 1, ours, theirs).ratio("files")
    assert ratio is not None
    assert (ratio.low, ratio.median, ratio.high) == (2, 2, 2)


def test_the_ordinary_script_runs_by_itself(tiny_model: Path, photo: NDArray[np.uint8], tmp_path: Path) -> None:
    photo_file = tmp_path / "photo.png"
    Image.fromarray(photo).save(photo_file)
    settings = ordinary_settings(tiny_model, read_card(tiny_model), (photo_file,), tmp_path / "out", ("mask", "color"))
    script = ordinary_inference.__file__
    subprocess.run([sys.executable, "-P", script, json.dumps(settings)], check=True)
    assert sorted(path.parent.name for path in (tmp_path / "out").rglob("*.png")) == ["color", "mask"]
    tasks = ordinary_inference.open_contender(settings)
    tasks["network"](2)


def _write_wheel(path: Path, name: str, version: str, text: str) -> None:
    """Write a wheel of one module."""
    about = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{name}.py", f"text = {text!r}\n")
        archive.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{about}/RECORD", "")
