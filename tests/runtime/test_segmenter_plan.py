import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest

from segship.runtime.backends import EngineInfo
from segship.runtime.backends.cpu_quota import available_cpus
from segship.runtime.card import ModelCard
from segship.runtime.errors import CardError, ModelError
from segship.runtime.model_file import read_card
from segship.runtime.prepare import Tiling
from segship.runtime.segmenter_plan import (
    DEFAULT_OVERLAP,
    GPU_BATCH,
    card_of,
    only_card,
    plan_batch,
    plan_crew,
    plan_tiles,
)


def test_the_card_of_a_model_is_the_one_it_carries(conv_model: Path, conv_card: ModelCard) -> None:
    assert card_of(conv_model) == conv_card


def test_a_missing_model_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"nothing\.onnx"):
        card_of(tmp_path / "nothing.onnx")


def test_a_given_card_is_for_a_model_without_one(
    tiny_model: Path, with_card: Callable[..., Path], conv_card: ModelCard
) -> None:
    assert only_card(with_card(tiny_model, None), conv_card) is conv_card
    with pytest.raises(CardError, match="leave out --card"):
        only_card(tiny_model, read_card(tiny_model))


def test_without_a_word_of_tiles_pictures_stay_whole(conv_card: ModelCard) -> None:
    assert plan_tiles(conv_card, None, None, None, 1) == (conv_card, None)
    with pytest.raises(CardError, match=r"give the tiles' size too \(--tile\)"):
        plan_tiles(conv_card, None, None, 0.5, 1)


def test_tiles_are_what_was_asked_for_before_what_the_card_says(conv_card: ModelCard) -> None:
    assert plan_tiles(conv_card, None, (50, 60), None, 4) == (conv_card, Tiling((50, 60), DEFAULT_OVERLAP, 4))
    tiled = dataclasses.replace(conv_card, tile_overlap=0.5)
    assert plan_tiles(tiled, None, None, None, 1) == (tiled, Tiling((24, 32), 0.5, 1))
    assert plan_tiles(tiled, None, (50, 60), 0.0, 1) == (tiled, Tiling((50, 60), 0.0, 1))
    assert plan_tiles(tiled, None, None, 0.1, 1) == (tiled, Tiling((24, 32), 0.1, 1))


def test_a_graph_of_open_size_gets_tiles_as_they_are(conv_card: ModelCard) -> None:
    open_card = dataclasses.replace(conv_card, dynamic=("size",))
    of_tiles, tiling = plan_tiles(open_card, None, (48, 64), None, 1)
    assert (of_tiles.preprocess.size, tiling) == ((48, 64), Tiling((48, 64), DEFAULT_OVERLAP, 1))
    with pytest.raises(CardError, match="multiples of 8"):
        plan_tiles(open_card, None, (50, 60), None, 1)
    sized = open_card.at_size((16, 16))  # unless another size was asked for
    assert plan_tiles(sized, (16, 16), (50, 60), None, 1)[0].preprocess.size == (16, 16)


@pytest.mark.parametrize(
    "form",
    [
        {"head": "labels", "output_name": "labels"},
        {"frame": (24, 32), "input_form": "pixels", "head": "labels", "output_name": "labels"},
    ],
)
def test_of_labels_and_frames_there_are_no_tiles(conv_card: ModelCard, form: dict[str, object]) -> None:
    card = dataclasses.replace(conv_card, **form)  # type: ignore[arg-type]
    with pytest.raises(CardError, match="export with --head logits"):
        plan_tiles(card, None, (24, 32), None, 1)


def engine(device: str, streams: int = 1) -> EngineInfo:
    return EngineInfo("ort", "ONNX Runtime", device, "fp32", 1, streams)


def test_runs_on_each_core_keep_no_worker_for_themselves() -> None:
    crew = plan_crew(engine("cpu", streams=64), 2)
    assert (crew.workers, crew.runs, crew.batch, crew.keep_for_network) == (max(64, available_cpus()), 64, 2, 0)


@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
def test_an_engine_that_works_by_itself_has_a_worker_that_waits_for_it_only(device: str) -> None:
    crew = plan_crew(engine(device), 1)
    assert (crew.runs, crew.keep_for_network) == (1, 1)
    assert crew.workers >= 3


@pytest.mark.parametrize(
    ("device", "dynamic", "asked", "batch"),
    [
        ("cpu", ("batch",), None, 1),
        ("cuda:0", ("batch",), None, GPU_BATCH),
        ("cuda:0", ("size",), None, 1),
        ("cuda:0", ("batch",), 1, 1),
        ("cpu", ("batch", "size"), 5, 5),
        ("cpu", (), 1, 1),
    ],
)
def test_a_gpu_gets_several_pictures_at_once_where_nothing_else_is_said(
    conv_card: ModelCard, device: str, dynamic: tuple[Literal["batch", "size"], ...], asked: int | None, batch: int
) -> None:
    card = dataclasses.replace(conv_card, dynamic=dynamic)
    assert plan_batch(Path("model.onnx"), card, engine(device), asked) == batch


def test_a_batch_that_the_graph_does_not_take_is_an_error(conv_card: ModelCard) -> None:
    with pytest.raises(ModelError, match=r"model\.onnx takes one picture at a time; export it with --dynamic batch"):
        plan_batch(Path("model.onnx"), conv_card, engine("cuda:0"), 2)
