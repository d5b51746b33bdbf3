import dataclasses
import warnings
from pathlib import Path

import pytest

from segship.runtime.backends import EngineInfo
from segship.runtime.card import ModelCard
from segship.runtime.certificate import Certificate, Proof
from segship.runtime.errors import UnprovenWarning
from segship.runtime.model_file import content_sha256, read_card, write_card
from segship.runtime.proof import unproven, warn_if_unproven

ORT = EngineInfo("ort", "ONNX Runtime 1.31.1", "cpu", "fp32", 1)


@pytest.fixture
def proven(conv_model: Path) -> Path:
    """A model that was compared with PyTorch in ONNX Runtime."""
    row = Proof("ort", ORT.engine, "cpu", "fp32", "a gate", True, 1e-6, 1e-7, 1.0, 1.0, 0, 1.0)
    certificate = Certificate(content_sha256(conv_model), "PyTorch", "8 real", 1e-4, 1e-3, (row,))
    write_card(conv_model, dataclasses.replace(read_card(conv_model), certificate=certificate))
    return conv_model


def test_what_was_compared_is_proven_wherever_the_file_lies(proven: Path, tmp_path: Path) -> None:
    assert unproven(proven, read_card(proven), ORT) == ""
    moved = proven.rename(tmp_path / "moved.onnx")
    assert unproven(moved, read_card(moved), ORT) == ""


def test_a_model_without_certificate_promises_nothing(conv_model: Path, conv_card: ModelCard) -> None:
    assert unproven(conv_model, conv_card, ORT) == ""


def test_an_edited_mean_loses_the_proof(proven: Path) -> None:
    card = read_card(proven)
    write_card(
        proven, dataclasses.replace(card, preprocess=dataclasses.replace(card.preprocess, mean=(0.4, 0.45, 0.51)))
    )
    assert unproven(proven, read_card(proven), ORT).startswith("its graph, weights or card were changed since")


def test_a_changed_weight_loses_the_proof(proven: Path) -> None:
    content = proven.read_bytes()
    place = content.index(b"weights") - 3  # the tensor's values lie before its name
    proven.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    assert unproven(proven, read_card(proven), ORT).startswith("its graph, weights or card were changed since")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"backend": "opencv", "engine": "OpenCV 5.0.0"}, "OpenCV 5.0.0, cpu, fp32"),
        ({"engine": "ONNX Runtime 2.0.0"}, "ONNX Runtime 2.0.0, cpu, fp32"),
        ({"device": "cuda:0"}, "ONNX Runtime 1.31.1, cuda:0, fp32"),
        ({"precision": "bf16"}, "ONNX Runtime 1.31.1, cpu, bf16"),
    ],
)
def test_a_combination_without_a_row_says_how_to_compare_it(proven: Path, change: dict[str, str], words: str) -> None:
    engine = dataclasses.replace(ORT, **change)  # type: ignore[arg-type]
    assert unproven(proven, read_card(proven), engine) == (
        f"its export did not compare it with PyTorch on {words}; "
        f"do so here: seg-check model {proven} --backend {engine.backend} --golden FILE.npz"
    )


def test_a_warning_names_the_model_and_what_is_proven_warns_of_nothing(proven: Path) -> None:
    card = read_card(proven)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_if_unproven(proven, card, ORT)
        assert not caught
        warn_if_unproven(proven, card, dataclasses.replace(ORT, precision="bf16"))
    (warning,) = caught
    assert warning.category is UnprovenWarning
    assert str(warning.message).startswith(f"{proven}: its export did not compare it")
