from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from segship.export import trial
from segship.export.trial import segmenting, speed_ratio
from segship.runtime.card import ModelCard
from segship.runtime.model_file import read_card
from segship.runtime.segmenter import Segmenter

TakingPixels = Callable[[onnx.ModelProto, ModelCard], tuple[onnx.ModelProto, ModelCard]]


def test_a_graph_in_memory_segments_as_its_file_does(tiny_model: Path, photo: NDArray[np.uint8]) -> None:
    with segmenting(onnx.load(tiny_model), read_card(tiny_model)) as tried, Segmenter(tiny_model, backend="ort") as seg:
        np.testing.assert_array_equal(tried(photo).labels, seg(photo).labels)


def test_a_graph_that_does_more_is_slower(
    tiny_model: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, taking_pixels: TakingPixels
) -> None:
    monkeypatch.setattr(trial, "SECONDS", 0.2)
    once, card = taking_pixels(onnx.load(tiny_model), read_card(tiny_model))
    thrice = onnx.ModelProto()
    thrice.CopyFrom(once)
    for copy in range(20):
        for node in once.graph.node:
            extra: Any = thrice.graph.node.add()
            extra.CopyFrom(node)
            extra.name = f"{copy}{node.name}"
            extra.output[:] = [f"{copy}{name}" for name in node.output]
            extra.input[:] = [
                f"{copy}{n}" if n in {o for m in once.graph.node for o in m.output} else n for n in node.input
            ]
        kept = thrice.graph.output.add()
        kept.CopyFrom(once.graph.output[0])
        kept.name = f"{copy}{kept.name}"
    assert speed_ratio(once, thrice, card) < 1 < speed_ratio(thrice, once, card)
