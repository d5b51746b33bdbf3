import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from segship.benchmarks.candidates import (
    Engine,
    candidates,
    check_engines,
    command_line,
    in_batches,
    python_lines,
    working_engines,
)
from segship.benchmarks.engine_choice import Choice, open_choice
from segship.benchmarks.record import BenchError
from segship.runtime.backends import EngineInfo
from segship.runtime.segmenter import Segmenter


def test_each_engine_is_tried_on_each_file_in_its_own_precision_too(tiny_model: Path, open_model: Path) -> None:
    engines = [Engine("openvino", "cpu"), Engine("ort", "cpu"), Engine("openvino:streams=2", "cpu")]
    tries = candidates([tiny_model, open_model], engines, threads=2, for_rate=False)
    asked = [(variants[0].model, variants[0].asked) for variants in tries]
    assert asked == [
        (model, name)
        for names in (("openvino", "openvino:precision=engine"), ("ort",), ("openvino:streams=2",))
        for model in (tiny_model, open_model)
        for name in names
    ]
    assert all(variants == [replace(variants[0], threads=2, batch=1)] for variants in tries)


def test_where_pictures_a_second_are_asked_for_several_runs_are_tried_at_once(tiny_model: Path) -> None:
    engines = [Engine("ort:memory_arena=off", "cpu"), Engine("opencv", "cpu"), Engine("ort:streams=3", "cpu")]
    tries = candidates([tiny_model], engines, threads=2, for_rate=True)
    assert [[choice.asked for choice in variants] for variants in tries] == [
        ["ort:memory_arena=off", "ort:memory_arena=off,streams=2"],
        ["opencv"],
        ["ort:streams=3"],
    ]


def test_a_batch_is_tried_where_the_file_takes_one(tiny_model: Path, open_model: Path, tiled_model: Path) -> None:
    for device, batch in (("cpu", 4), ("cuda:0", 8)):
        best = Choice(open_model, "ort:streams=2", device, threads=2)
        assert in_batches(best) == [replace(best, batch=batch)]
        assert [in_batches(replace(best, model=model)) for model in (tiny_model, tiled_model)] == [[], []]


def test_threads_are_tried_from_all_cpus_to_one(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("segship.benchmarks.candidates.available_cpus", lambda: 8)
    (variants,) = candidates([tiny_model], [Engine("opencv", "cpu")], threads=None, for_rate=False)
    assert [choice.threads for choice in variants] == [8, 4, 1]


def test_command_and_python_run_a_model_as_it_was_tried(tiny_model: Path) -> None:
    choice = Choice(tiny_model, "ort:graph_optimization=basic,memory_arena=off", "cpu", threads=1)
    with open_choice(choice) as tried:
        command, lines = shlex.split(command_line(choice, tried.info)), python_lines(choice, tried.info)
        names: dict[str, Segmenter] = {}
        exec(lines, names)
        with names["segmenter"] as made:
            assert (made.info, made.options, made.crew) == (tried.info, tried.options, tried.crew)
    assert command[:3] == ["seg-infer", str(tiny_model), "PICTURES"]
    options = dict(zip(command[3:13:2], command[4:13:2], strict=True))
    assert options == {"--backend": "ort", "--device": "cpu", "--threads": "1", "--streams": "1", "--batch": "1"}
    assert command[13:] == ["--set", "graph_optimization=basic", "--set", "memory_arena=false"]


def test_an_engine_that_is_asked_for_and_does_not_work_is_a_failure_with_its_reason() -> None:
    engines, failures = working_engines(["opencv", "nosuch"], "cpu")
    assert engines == [Engine("opencv", "cpu")]
    assert [failure.asked for failure in failures] == ["nosuch"]
    assert "no backend is called 'nosuch'" in failures[0].error
    check_engines(engines, failures)
    with pytest.raises(BenchError, match=r"no engine runs models here .*no backend is called 'nosuch'"):
        check_engines([], failures)


def test_threads_of_the_engine_are_told_also_where_none_were_asked_for(tiny_model: Path) -> None:
    info = EngineInfo("ort", "ONNX Runtime 1.31.1", "cpu", "fp32", 6)
    assert "--threads 6 --streams 1" in command_line(Choice(tiny_model), info)
