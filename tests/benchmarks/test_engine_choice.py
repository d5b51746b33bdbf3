import dataclasses
from pathlib import Path

import cv2
import pytest

from segship.benchmarks.engine_choice import (
    Choice,
    check_checkpoint,
    open_choice,
    proof_in_words,
    share_cv2_threads,
    subject_of,
)
from segship.benchmarks.record import BenchError
from segship.runtime.backends.options import EngineOptions
from segship.runtime.certificate import Proof
from segship.runtime.errors import BackendError, DeviceError, ModelError, StreamsError, UnprovenWarning
from segship.runtime.model_file import content_sha256, read_card, write_card

PROOF = Proof("ort", "ONNX Runtime 1", "cpu", "fp32", "exact", True, 1.3e-5, 1e-6, 1.0, 1.0, 0, 1.0)


def test_an_engine_is_opened_with_the_options_that_its_name_carries(tiny_model: Path) -> None:
    choice = Choice(tiny_model, "ort:graph_optimization=basic,memory_arena=off", "cpu", threads=1)
    with open_choice(choice) as segmenter:
        assert segmenter.info.backend == "ort"
        assert segmenter.info.threads == 1
        assert segmenter.options.asked() == {"threads": 1, "graph_optimization": "basic", "memory_arena": False}


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (
            "ort:fast",
            r"^--backend ort:fast: 'fast' is no option of an engine; expected KEY=VALUE.* tf32, cache, engine$",
        ),
        ("ort:precision=x", r"--backend ort:precision=x: precision is 'x'; expected"),
        ("ort:threads=0", "threads is 0"),
        ("ort:alpha=0.3", "'alpha=0.3' is no option of an engine"),
    ],
)
def test_what_is_no_option_of_an_engine_is_refused(tiny_model: Path, asked: str, words: str) -> None:
    with pytest.raises(BenchError, match=words):
        open_choice(Choice(tiny_model, asked))


def test_an_option_that_the_engine_lacks_is_refused(tiny_model: Path) -> None:
    with pytest.raises(BackendError, match="no option precision"):
        open_choice(Choice(tiny_model, "ort:precision=engine", "cpu"))


def test_batches_need_a_model_that_takes_them(tiny_model: Path, open_model: Path, tiled_model: Path) -> None:
    with pytest.raises(ModelError, match="--dynamic batch"):
        open_choice(Choice(tiny_model, device="cpu", batch=2))
    with pytest.raises(BenchError, match=r"--batch 2: .* tiles"):
        open_choice(Choice(tiled_model, device="cpu", batch=2))
    with open_choice(Choice(open_model, device="cpu", batch=2)) as segmenter:
        assert segmenter.crew.batch == 2


def test_a_checkpoint_takes_batches(tiny_checkpoint: Path) -> None:
    with open_choice(Choice(tiny_checkpoint, "torch", "cpu", batch=2)) as segmenter:
        assert segmenter.crew.batch == 2


def test_further_arguments_overrule_the_choice_whatever_the_engine(tiny_checkpoint: Path) -> None:
    choice = Choice(tiny_checkpoint, "torch", "cpu", batch=2, threads=2)
    with open_choice(choice, options=EngineOptions(threads=1)) as segmenter:
        assert (segmenter.info.threads, segmenter.options.threads, segmenter.crew.batch) == (1, 1, 2)
    with pytest.raises(StreamsError, match="2 streams were asked for"):
        open_choice(choice, options=EngineOptions(streams=2))
    with pytest.raises(DeviceError, match="cuda:99"):
        open_choice(choice, device="cuda:99")


def test_opencv_has_its_threads_beside_engines_that_leave_it_one(tiny_model: Path) -> None:
    before = cv2.getNumThreads()
    try:
        with open_choice(Choice(tiny_model, "ort", "cpu")) as ort:
            assert cv2.getNumThreads() == 1
            with open_choice(Choice(tiny_model, "opencv", "cpu", threads=2)) as opencv:
                assert cv2.getNumThreads() == opencv.info.threads == 2
                share_cv2_threads(ort)
                assert cv2.getNumThreads() == 1
                share_cv2_threads(opencv)
                assert cv2.getNumThreads() == 2
    finally:
        cv2.setNumThreads(before)


def test_a_subject_says_what_runs_and_what_is_proven_of_it(tiny_model: Path) -> None:
    choice = Choice(tiny_model, "ort", "cpu")
    with open_choice(choice) as segmenter:
        subject = subject_of(choice, segmenter)
    assert (subject.model, subject.arch, subject.size, subject.batch) == (str(tiny_model), "unet", (48, 64), 1)
    assert subject.sha256 == content_sha256(tiny_model)
    assert subject.engine == segmenter.info
    assert subject.certificate is not None
    assert subject.certificate.startswith("exact: 100 % of labels, max |Δ| ")


def test_a_certificate_that_is_not_the_files_says_nothing(tiny_model: Path, tmp_path: Path) -> None:
    card = read_card(tiny_model)
    write_card(tiny_model, dataclasses.replace(card, threshold=0.25), output=tmp_path / "edited.onnx")
    choice = Choice(tmp_path / "edited.onnx", "ort", "cpu")
    with pytest.warns(UnprovenWarning), open_choice(choice) as segmenter:
        assert subject_of(choice, segmenter).certificate is None


def test_the_subject_of_pytorch_is_the_checkpoint(tiny_model: Path, tiny_checkpoint: Path) -> None:
    choice = Choice(tiny_checkpoint, "torch", "cpu")
    with open_choice(choice) as segmenter:
        subject = subject_of(choice, segmenter)
    assert subject.sha256 == read_card(tiny_model).provenance.checkpoint_sha256
    assert subject.certificate is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "exact: 100 % of labels, max |Δ| 1.3e-05"),
        ({"max_abs": None}, "exact: 100 % of labels"),
        ({"label_agreement": 0.9999996}, "99.9999 % of labels, the others near ties, max |Δ| 1.3e-05"),
        (
            {"label_agreement": 0.5, "unexplained_flips": 3, "miou": 0.25},
            "50.0000 % of labels, mIoU 0.25000, max |Δ| 1.3e-05",
        ),
    ],
)
def test_a_proof_in_words_never_rounds_up_to_exact(changes: dict[str, float], words: str) -> None:
    assert proof_in_words(dataclasses.replace(PROOF, **changes)) == words  # type: ignore[arg-type]


def test_a_checkpoint_stands_for_the_model_that_was_exported_from_it(
    tiny_model: Path, tiny_checkpoint: Path, binary_checkpoint: Path
) -> None:
    check_checkpoint(tiny_model, tiny_checkpoint)
    expected = read_card(tiny_model).provenance.checkpoint_sha256
    with pytest.raises(BenchError, match=f"sha-256 {expected}, and .*binary.* has [0-9a-f]{{64}}"):
        check_checkpoint(tiny_model, binary_checkpoint)
    with pytest.raises(BenchError, match="does not say which checkpoint"):
        check_checkpoint(tiny_checkpoint, tiny_checkpoint)
    with pytest.raises(ModelError, match="cannot read the checkpoint"):
        check_checkpoint(tiny_model, tiny_checkpoint.with_name("none.safetensors"))
