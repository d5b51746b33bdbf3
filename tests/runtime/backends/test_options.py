"""What a user may ask of engines, and what they refuse."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from segship.runtime.backends import load_backend
from segship.runtime.backends.cpu_quota import available_cpus
from segship.runtime.backends.options import EngineOptions
from segship.runtime.errors import BackendError, StreamsError
from segship.runtime.model_file import read_card

FOREIGN = {
    "ort": {"precision": "engine", "cache": "x", "engine": "new"},
    "opencv": {"precision": "engine", "cache": "x", "io_binding": False, "memory_arena": False, "tf32": True},
    "openvino": {"graph_optimization": "all", "cuda_graph": True, "memory_limit_mb": 1, "engine": "classic"},
    "tensorrt": {"graph_optimization": "all", "engine": "classic"},
    "torch": {"precision": "engine", "cache": "x", "engine": "new", "memory_limit_mb": 1},
}


def test_by_default_nothing_is_asked_for() -> None:
    assert EngineOptions().cpu_threads == available_cpus()
    assert EngineOptions().asked() == {}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"threads": 0}, "threads is 0; expected 1 or more"),
        ({"streams": -1}, "streams is -1; expected 1 or more"),
        ({"memory_limit_mb": 0}, "memory_limit_mb is 0"),
        ({"cache": ""}, "cache is empty"),
    ],
)
def test_what_does_not_fit_is_one_line_that_says_what_would(values: dict[str, Any], words: str) -> None:
    with pytest.raises(BackendError, match=words) as caught:
        EngineOptions(**values)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("engine", "name", "value"), [(engine, *pair) for engine, pairs in FOREIGN.items() for pair in pairs.items()]
)
def test_an_engine_refuses_what_it_does_not_have(
    engine: str, name: str, value: Any, tiny_model: Path, tiny_checkpoint: Path
) -> None:
    model = tiny_checkpoint if engine == "torch" else tiny_model
    options = dataclasses.replace(EngineOptions(), **{name: value})
    with pytest.raises(
        BackendError, match=rf"the {engine} backend has no option {name}; leave it out \(it has .*streams"
    ):
        load_backend(engine, model, read_card(model), "auto", options)


@pytest.mark.parametrize("engine", ["opencv", "torch"])
def test_an_engine_of_one_stream_refuses_more(engine: str, tiny_model: Path, tiny_checkpoint: Path) -> None:
    model = tiny_checkpoint if engine == "torch" else tiny_model
    with pytest.raises(StreamsError, match=rf"3 streams were asked for, but the {engine} backend runs one at a time"):
        load_backend(engine, model, read_card(model), "cpu", EngineOptions(streams=3))
