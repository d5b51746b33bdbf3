import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from PIL import Image as PillowImage

from segship.runtime.backends import EngineInfo
from segship.runtime.card import ModelCard
from segship.runtime.certificate import Certificate, Proof
from segship.runtime.check import INT8_SLACK, check_model, gate_here, installable_backends
from segship.runtime.check_report import ModelCheck
from segship.runtime.compare import LOOSE, STRICT, Expected, Gate
from segship.runtime.errors import BackendError, DeviceError, ImageError, MissingExtraError, ModelError
from segship.runtime.golden import Example, write_golden
from segship.runtime.model_file import content_sha256, read_card, write_card
from segship.runtime.segmenter import Segmenter

ENGINES = ("ort", "opencv")


@pytest.fixture
def pictures(tmp_path: Path, photo: NDArray[np.uint8]) -> list[Path]:
    """Two pictures of different sizes, one of them lossy."""
    (tmp_path / "pictures").mkdir()
    paths = [tmp_path / "pictures/a.png", tmp_path / "pictures/b.jpg"]
    PillowImage.fromarray(photo).save(paths[0])
    PillowImage.fromarray(photo[:60, :70]).save(paths[1], quality=90)
    return paths


def _examples(model: Path, pictures: list[Path]) -> list[Example]:
    """Take what ONNX Runtime says for what PyTorch said."""
    noise = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)
    card = read_card(model)
    with Segmenter(model, backend="ort", device="cpu") as segmenter:
        return [
            Example(
                str(getattr(source, "name", "noise")),
                source.read_bytes() if isinstance(source, Path) else b"",
                Expected.of(segmenter(source), segmenter.processing.stages(source), card),
            )
            for source in (noise, *pictures)
        ]


@pytest.fixture
def golden(conv_model: Path, pictures: list[Path], tmp_path: Path) -> Path:
    """Golden outputs of ``conv_model`` on noise and two pictures."""
    path = tmp_path / "golden.npz"
    write_golden(path, read_card(conv_model), content_sha256(conv_model), _examples(conv_model, pictures))
    return path


def _proof(backend: str, agreement: float = 1.0, *, passes: bool = True, precision: str = "fp32") -> Proof:
    return Proof(backend, "An Engine 1", "cpu", precision, "a gate", passes, 1e-6, 1e-7, 1.0, agreement, 0, 1.0)


def _certify(model: Path, *rows: Proof, content: str | None = None) -> None:
    content = content_sha256(model) if content is None else content
    certificate = Certificate(content, "PyTorch 2.13.0 on cpu", "3 random, 8 real", 1e-4, 1e-3, rows)
    write_card(model, dataclasses.replace(read_card(model), certificate=certificate))


def _verdicts(check: ModelCheck) -> dict[str, str]:
    return {row.engine.backend: row.verdict for row in check.against_golden or ()}


def test_an_untouched_model_is_the_same_on_every_engine(conv_model: Path, golden: Path) -> None:
    _certify(conv_model, _proof("ort"), _proof("opencv"))
    check = check_model(conv_model, golden=golden, backends=ENGINES)
    assert check.is_certified is True
    assert _verdicts(check) == {"ort": "same", "opencv": "same"}
    assert check.faults == []
    assert [row.comparison.pictures for row in check.against_golden or () if row.comparison] == [3, 3]
    text = check.to_markdown()
    assert "Certificate: matches this file" in text
    assert "3 pictures as PyTorch saw them" in text
    assert "| An Engine 1 | cpu | fp32 | 1.0e-06 |" in text
    assert "NOT THE SAME" not in text


def test_engines_are_compared_with_the_first_one_on_the_users_pictures(conv_model: Path, pictures: list[Path]) -> None:
    check = check_model(conv_model, pictures, backends=ENGINES)
    assert [(row.engine.backend, row.verdict) for row in check.among_each_other or ()] == [
        ("ort", "reference"),
        ("opencv", "same"),
    ]
    assert check.against_golden is None
    assert check.is_certified is None
    assert check.faults == []
    assert "carries no certificate" in check.to_markdown()
    assert "on 2 of your pictures" in check.to_markdown()


def test_labels_alone_are_compared_too(
    write_conv_model: Callable[..., Path], conv_card: ModelCard, tmp_path: Path, pictures: list[Path]
) -> None:
    card = dataclasses.replace(conv_card, head="labels", output_name="labels")
    logits = write_conv_model(tmp_path / "logits.onnx", conv_card)
    model = write_conv_model(tmp_path / "labels.onnx", card)
    write_golden(tmp_path / "g.npz", card, content_sha256(model), _as_labels(_examples(logits, pictures)))
    check = check_model(model, pictures, golden=tmp_path / "g.npz", backends=ENGINES)
    assert check.faults == []
    assert _verdicts(check) == {"ort": "same", "opencv": "same"}
    assert [row.verdict for row in check.among_each_other or ()] == ["reference", "same"]
    assert "| n/a | n/a | n/a | 100.0000 % | 0 of 0 |" in check.to_markdown()


def _as_labels(examples: list[Example]) -> Iterator[Example]:
    for example in examples:
        yield dataclasses.replace(example, expected=dataclasses.replace(example.expected, logits=None))


def test_without_golden_and_pictures_each_engine_only_runs(conv_model: Path) -> None:
    check = check_model(conv_model, backends=ENGINES)
    assert [(row.engine.backend, row.verdict) for row in check.noise or ()] == [("ort", "runs"), ("opencv", "runs")]
    assert "Nothing was compared: each engine ran one picture of noise" in check.to_markdown()
    assert check.faults == []


def test_a_model_of_nan_fails_and_says_so(conv_model: Path) -> None:
    _change_weight(conv_model, np.nan)
    check = check_model(conv_model, backends=["ort"])
    assert [row.verdict for row in check.noise or ()] == ["FAILS"]
    assert "NOT THE SAME: ONNX Runtime" in check.to_markdown()
    assert "no numbers" in check.faults[0]


def _change_weight(model: Path, value: float) -> None:
    proto = onnx.load(model)
    weights = onnx.numpy_helper.to_array(proto.graph.initializer[0]).copy()
    weights.flat[0] = value
    proto.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(weights, "weights"))
    onnx.save(proto, model)


def test_golden_outputs_of_another_model_are_an_error(conv_model: Path, golden: Path) -> None:
    _change_weight(conv_model, 3)
    with pytest.raises(ModelError, match="for another model than"):
        check_model(conv_model, golden=golden, backends=["ort"])


def test_a_model_that_was_changed_after_its_proof_is_told_at_which_stage(conv_model: Path, golden: Path) -> None:
    _certify(conv_model, _proof("ort"))
    _change_weight(conv_model, 3)
    check = check_model(conv_model, golden=golden, backends=["ort"])
    assert check.is_certified is False
    assert _verdicts(check) == {"ort": "DIFFERS"}
    assert any("the certificate is not this file's" in fault for fault in check.faults)
    assert any("first differs at the stage network" in fault for fault in check.faults)


def test_a_certificate_of_another_graph_is_told(conv_model: Path, pictures: list[Path]) -> None:
    _certify(conv_model, _proof("ort"), _proof("opencv"))
    _change_weight(conv_model, 3)
    check = check_model(conv_model, pictures, backends=ENGINES)
    assert check.is_certified is False
    assert check.faults == [
        "the certificate is not this file's: its graph, weights or card were changed after the proof"
    ]
    assert "DOES NOT match this file" in check.to_markdown()


def _sabotaged(golden: Path, model: Path, change: Callable[[Expected], Expected]) -> None:
    from segship.runtime.golden import read_golden

    kept = read_golden(golden)
    examples = [
        dataclasses.replace(example, expected=change(example.expected)) for example in kept.examples(read_card(model))
    ]
    write_golden(golden, read_card(model), kept.content_sha256, examples)


def _other_logits(expected: Expected) -> Expected:
    """Turn every label into another one."""
    assert expected.logits is not None
    return dataclasses.replace(expected, logits=expected.logits[::-1].copy(), labels=5 - expected.labels)


def _stage(**changes: Callable[[NDArray[np.generic]], NDArray[np.generic]]) -> Callable[[Expected], Expected]:
    def change(expected: Expected) -> Expected:
        stages = dataclasses.replace(
            expected.stages, **{name: edit(getattr(expected.stages, name)) for name, edit in changes.items()}
        )
        return dataclasses.replace(_other_logits(expected), stages=stages)

    return change


@pytest.mark.parametrize(
    ("change", "stage"),
    [
        (_other_logits, "network"),
        (_stage(decoded=lambda pixels: pixels[..., ::-1]), "decode"),
        (_stage(decoded=lambda pixels: pixels[1:]), "decode"),
        (_stage(resized=lambda pixels: np.roll(pixels, 1, axis=0)), "resize"),
        (_stage(normalised=lambda values: values + np.float32(0.01)), "normalise"),
    ],
)
def test_the_stage_at_which_an_engine_first_differs_is_named(
    conv_model: Path, golden: Path, change: Callable[[Expected], Expected], stage: str
) -> None:
    _sabotaged(golden, conv_model, change)
    check = check_model(conv_model, golden=golden, backends=ENGINES)
    assert set(_verdicts(check).values()) <= {"DIFFERS", "FAILS"}
    assert len(check.faults) == 2
    assert all(f"first differs at the stage {stage}" in fault for fault in check.faults)


def test_a_golden_picture_that_cannot_be_decoded_here_is_a_fault_of_that_stage(
    conv_model: Path, pictures: list[Path], tmp_path: Path
) -> None:
    noise, first, second = _examples(conv_model, pictures)
    damaged = dataclasses.replace(first, file=first.file[:100])
    path = tmp_path / "golden.npz"
    write_golden(path, read_card(conv_model), content_sha256(conv_model), [noise, damaged, second])
    check = check_model(conv_model, golden=path, backends=["ort"])
    assert _verdicts(check) == {"ort": "FAILS"}
    assert "fails on a.png at the stage decode" in check.faults[0]


def test_a_picture_of_the_user_that_cannot_be_read_is_an_error(conv_model: Path, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("text")
    with pytest.raises(ImageError, match=r"text\.png"):
        check_model(conv_model, [tmp_path / "text.png"], backends=ENGINES)


@pytest.mark.extras
def test_an_engine_that_refuses_a_file_that_it_ran_where_it_was_proven_is_a_fault(
    conv_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(name: str, model: Path, card: ModelCard, device: str) -> object:
        if name != "ort":
            raise ModelError(f"{model}: {name} cannot load it")
        return load(name, model, card, device)

    import segship.runtime.check as module

    load = module.load_backend
    monkeypatch.setattr(module, "load_backend", refuse)
    check = check_model(conv_model)
    assert "opencv" in check.refused
    assert check.faults == []
    assert f"Does not run this file: opencv: {conv_model}: opencv cannot load it" in check.to_markdown()
    _certify(conv_model, _proof("ort"), _proof("opencv"))
    assert [fault.partition(":")[0] for fault in check_model(conv_model).faults] == [
        "opencv ran this file where it was proven"
    ]


@pytest.mark.extras
def test_an_engine_that_is_not_installed_is_listed_or_an_error_if_it_was_asked_for(
    conv_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load_without_opencv(name: str, model: Path, card: ModelCard, device: str) -> object:
        if name == "opencv":
            raise MissingExtraError("install it so")
        return load(name, model, card, device)

    import segship.runtime.check as module

    load = module.load_backend
    monkeypatch.setattr(module, "load_backend", load_without_opencv)
    check = check_model(conv_model)
    assert check.missing["opencv"] == "install it so"
    assert check.faults == []
    with pytest.raises(MissingExtraError):
        check_model(conv_model, backends=["opencv"])


@pytest.mark.extras
def test_an_engine_without_the_device_is_no_fault(conv_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load_on_cpu(name: str, model: Path, card: ModelCard, device: str) -> object:
        if name == "opencv":
            raise DeviceError("no cuda here")
        return load(name, model, card, "cpu")

    import segship.runtime.check as module

    load = module.load_backend
    monkeypatch.setattr(module, "load_backend", load_on_cpu)
    _certify(conv_model, _proof("ort"), _proof("opencv"))
    check = check_model(conv_model, device="cuda")
    assert check.faults == []
    assert "Not checked: opencv: no cuda here" in check.to_markdown()


def test_an_engine_or_a_device_that_is_not_there_is_an_error(conv_model: Path) -> None:
    with pytest.raises(BackendError, match="no backend is called 'tensor'"):
        check_model(conv_model, backends=["tensor"])
    with pytest.raises(BackendError, match="no engine runs"):
        check_model(conv_model, device="tpu")


def test_a_checkpoint_is_no_model(tmp_path: Path, write_conv_model: Callable[..., Path], conv_card: ModelCard) -> None:
    header = json.dumps({"__metadata__": {"segship": conv_card.to_json()}}).encode()
    (tmp_path / "best.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(ModelError, match="is a checkpoint, not an ONNX file"):
        check_model(tmp_path / "best.safetensors")


@pytest.mark.extras
def test_every_engine_but_the_reference_is_asked() -> None:
    names = installable_backends()
    assert names[0] == "ort"
    assert {"ort", "opencv"} <= set(names)
    assert "torch" not in names


def _engine(backend: str, precision: str, device: str = "cpu") -> EngineInfo:
    return EngineInfo(backend, "An Engine 1.0", device, precision, 1)


def test_the_gate_is_that_of_the_file_and_of_what_the_engine_calculates_in(conv_card: ModelCard) -> None:
    assert gate_here(conv_card, _engine("ort", "fp32")) == STRICT
    assert gate_here(conv_card, _engine("openvino", "bf16")) == LOOSE
    assert gate_here(dataclasses.replace(conv_card, precision="fp16"), _engine("ort", "fp16")) == LOOSE
    frames = dataclasses.replace(conv_card, input_form="pixels", frame=(48, 64))
    assert gate_here(frames, _engine("ort", "fp32")) == STRICT


def test_int8_must_agree_as_it_did_where_it_was_proven_but_for_a_little(conv_card: ModelCard) -> None:
    card = dataclasses.replace(conv_card, precision="int8")
    assert gate_here(card, _engine("ort", "int8")) is None
    rows = (
        _proof("ort", 0.99, precision="int8"),
        _proof("opencv", 0.98, precision="int8"),
        _proof("openvino", 0.5, passes=False, precision="int8"),
    )
    card = dataclasses.replace(card, certificate=Certificate("", "PyTorch", "some", 1e-4, 1e-3, rows))
    assert gate_here(card, _engine("ort", "int8")) == Gate(within_tolerance=False, min_agreement=0.99 - INT8_SLACK)
    assert gate_here(card, _engine("ort", "int8", "cuda:0")) == Gate(
        within_tolerance=False, min_agreement=0.98 - INT8_SLACK
    )


def test_int8_without_certificate_is_recorded(conv_model: Path, golden: Path) -> None:
    write_card(conv_model, dataclasses.replace(read_card(conv_model), precision="int8"))
    _sabotaged_content(golden, conv_model)
    check = check_model(conv_model, golden=golden, backends=["ort"])
    assert _verdicts(check) == {"ort": "recorded"}
    assert check.faults == []


def _sabotaged_content(golden: Path, model: Path) -> None:
    from segship.runtime.golden import read_golden

    examples = list(read_golden(golden).examples(read_card(model)))
    write_golden(golden, read_card(model), content_sha256(model), examples)


def test_the_plain_values_are_json_and_hold_the_figures(conv_model: Path, golden: Path, pictures: list[Path]) -> None:
    _certify(conv_model, _proof("ort"))
    check = check_model(conv_model, pictures, golden=golden, backends=ENGINES)
    plain = json.loads(json.dumps(check.to_plain(), allow_nan=False))
    assert plain["passes"] is True
    assert plain["certificate"]["matches"] is True
    assert [row["verdict"] for row in plain["golden"]] == ["same", "same"]
    assert plain["golden"][0]["label_agreement"] == 1
    assert plain["golden"][0]["engine"]["backend"] == "ort"
    assert plain["noise"] is None


def test_text_of_a_stranger_does_not_steer_the_terminal(conv_model: Path) -> None:
    _certify(conv_model, dataclasses.replace(_proof("ort"), engine="An\x1b[2JEngine\n"))
    text = check_model(conv_model, backends=["ort"]).to_markdown()
    assert "\x1b" not in text
    assert r"| An\x1b[2JEngine\x0a |" in text
