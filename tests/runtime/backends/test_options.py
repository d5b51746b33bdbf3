"""What a user may ask of engines, and what they refuse."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from segship.runtime.backends import load_backend
from segship.runtime.backends.cpu_quota import available_cpus
from segship.runtime.backends.options import EngineOptions, options_from
from segship.runtime.errors import BackendError
from segship.runtime.model_file import read_card

FOREIGN = {
    "ort": {"precision": "engine", "cache": "x", "engine": "new"},
    "opencv": {"precision": "engine", "cache": "x", "io_binding": False, "memory_arena": False, "tf32": True},
    "openvino": {"graph_optimization": "all", "cuda_graph": True, "memory_limit_mb": 1, "engine": "classic"},
    "tensorrt": {"graph_optimization": "all", "engine": "classic"},
    "torch": {"precision": "engine", "cache": "x", "engine": "new", "memory_limit_mb": 1},
}


def test_texts_become_options_of_their_types() -> None:
    pairs = ["graph_optimization=none", "io_binding=off", "memory_arena = false", "tf32=TRUE", "memory_limit_mb=512"]
    assert options_from([*pairs, "cache=123", "precision=engine", "engine=classic", "cuda_graph=yes"]) == EngineOptions(
        graph_optimization="none",
        io_binding=False,
        memory_arena=False,
        tf32=True,
        memory_limit_mb=512,
        cache="123",
        precision="engine",
        engine="classic",
        cuda_graph=True,
    )


def test_without_texts_they_are_the_defaults() -> None:
    assert options_from() == EngineOptions()
    assert options_from().cpu_threads == available_cpus()
    assert EngineOptions().asked() == {}


def test_of_one_key_the_last_counts_and_what_is_given_apart_above_all() -> None:
    assert options_from(["threads=3", "threads=4"]).cpu_threads == 4
    assert options_from(["threads=3", "streams=2"], threads=5, streams=3) == EngineOptions(threads=5, streams=3)
    assert options_from(["streams=2"], threads=5) == EngineOptions(threads=5, streams=2)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("threads", "--set threads: expected key=value"),
        ("wings=2", "--set wings=2: expected key=value with one of the keys threads, streams, .*engine"),
        ("threads=many", "--set.threads is 'many'; expected int"),
        ("threads=0", "threads is 0; expected 1 or more"),
        ("streams=-1", "streams is -1; expected 1 or more"),
        ("memory_limit_mb=0", "memory_limit_mb is 0"),
        ("tf32=2", "--set.tf32 is '2'; expected bool"),
        ("precision=fp16", "precision is 'fp16'; expected one of file, engine"),
        ("graph_optimization=most", "expected one of none, basic, extended, all"),
        ("cache=", "cache is empty"),
    ],
)
def test_what_does_not_fit_is_one_line_that_says_what_would(text: str, words: str) -> None:
    with pytest.raises(BackendError, match=words) as caught:
        options_from([text])
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
    with pytest.raises(BackendError, match=rf"3 streams were asked for, but the {engine} backend runs one at a time"):
        load_backend(engine, model, read_card(model), "cpu", EngineOptions(streams=3))
