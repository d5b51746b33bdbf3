import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from segship.runtime.card import CARD_KEY, ModelCard
from segship.runtime.certificate import Certificate
from segship.runtime.errors import CardError, ModelError
from segship.runtime.model_file import (
    OnnxHeader,
    check_fits,
    content_sha256,
    read_card,
    read_onnx_header,
    write_card,
)

MANY = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def _small_model(shape: list[int | str | None] | None = None) -> onnx.ModelProto:
    values = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape or [1, 3, 4, "width"])
        for name in ("image", "logits")
    ]
    nodes = [onnx.helper.make_node("Identity", ["image"], ["logits"])]
    weights = onnx.numpy_helper.from_array(np.arange(6, dtype=np.float32), "weights")
    graph = onnx.helper.make_graph(nodes, "small", [values[0]], [values[1]], [weights])
    opsets = [onnx.helper.make_opsetid("com.example", 99), onnx.helper.make_opsetid("", 13)]
    model = onnx.helper.make_model(graph, opset_imports=opsets)
    for key in ("segship", "other"):
        entry = model.metadata_props.add()
        entry.key, entry.value = key, f"text of {key}"
    return model


SMALL = _small_model().SerializeToString()


def test_the_header_says_what_the_onnx_package_says(tiny_model: Path) -> None:
    model = onnx.load(tiny_model)
    header = read_onnx_header(tiny_model)
    assert header.opset == model.opset_import[0].version == 17
    assert header.metadata == {entry.key: entry.value for entry in model.metadata_props}
    assert header.inputs == {"image": (1, 3, 48, 64)}
    assert header.outputs == {"logits": (1, 6, 48, 64)}


def test_other_domains_open_sizes_and_other_metadata_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "small.onnx"
    path.write_bytes(SMALL)
    metadata = {"segship": "text of segship", "other": "text of other"}
    shape = (1, 3, 4, None)
    types = {"image": "float32", "logits": "float32"}
    assert read_onnx_header(path) == OnnxHeader(13, metadata, {"image": shape}, {"logits": shape}, types)


def test_weights_that_an_old_file_counts_among_its_inputs_are_none(tmp_path: Path) -> None:
    model = _small_model()
    model.graph.input.append(onnx.helper.make_tensor_value_info("weights", onnx.TensorProto.FLOAT, [6]))
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    model.graph.output[0].type.tensor_type.ClearField("elem_type")
    path = tmp_path / "old.onnx"
    path.write_bytes(model.SerializeToString())
    header = read_onnx_header(path)
    assert (list(header.inputs), header.types) == (["image"], {"image": "float16"})


@MANY
@given(st.integers(0, len(SMALL)))
def test_a_truncated_file_is_a_model_error_or_read(tmp_path: Path, length: int) -> None:
    _read_or_model_error(tmp_path, SMALL[:length])


@MANY
@given(st.lists(st.tuples(st.integers(0, len(SMALL) - 1), st.integers(0, 255)), min_size=1, max_size=6))
def test_a_file_with_changed_bytes_is_a_model_error_or_read(tmp_path: Path, changes: list[tuple[int, int]]) -> None:
    data = bytearray(SMALL)
    for place, value in changes:
        data[place] = value
    _read_or_model_error(tmp_path, bytes(data))


@MANY
@given(st.binary(max_size=60))
def test_random_bytes_are_a_model_error_or_read(tmp_path: Path, data: bytes) -> None:
    _read_or_model_error(tmp_path, data)


def _read_or_model_error(folder: Path, data: bytes) -> None:
    path = folder / "changed.onnx"
    path.write_bytes(data)
    outcome = _header(path)
    if isinstance(outcome, ModelError):
        assert str(path) in str(outcome)
        assert "\n" not in str(outcome)
    else:
        assert outcome.opset > 0


def _header(path: Path) -> OnnxHeader | ModelError:
    try:
        return read_onnx_header(path)
    except ModelError as error:
        return error


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "no ONNX file"),
        (b"this is a text about networks\n" * 9, "no ONNX file"),
        (SMALL[: len(SMALL) // 2], "a field is longer than the file"),
        (b"\x08\x08", "holds no graph or names no opset"),
        (b"\xff" * 40, "more than ten bytes"),
    ],
)
def test_what_is_no_onnx_file_is_said_to_be_none(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=words):
        read_card(path)


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"missing\.onnx: No such file"):
        read_onnx_header(tmp_path / "missing.onnx")
    with pytest.raises(ModelError, match="cannot read the model"):
        read_onnx_header(tmp_path)


def test_the_card_is_the_same_in_the_model_and_in_its_checkpoint(tiny_model: Path, tiny_checkpoint: Path) -> None:
    from_model, from_checkpoint = read_card(tiny_model), read_card(tiny_checkpoint)
    assert len(from_model.provenance.checkpoint_sha256) == 64
    assert dataclasses.replace(from_model, provenance=from_checkpoint.provenance, certificate=None) == from_checkpoint


@pytest.mark.parametrize(
    ("place", "kind", "words"),
    [
        ("input", onnx.TensorProto.UINT8, "says that it takes float32, but its graph takes uint8; this card is not"),
        ("input", onnx.TensorProto.FLOAT16, "takes float32, but its graph takes float16"),
        (
            "output",
            onnx.TensorProto.INT64,
            "says that it returns logits, but its graph returns int64; expected float32",
        ),
    ],
)
def test_a_card_of_another_type_than_its_graphs_is_not_its(
    conv_model: Path, conv_card: ModelCard, place: str, kind: int, words: str
) -> None:
    model = onnx.load(conv_model)
    getattr(model.graph, place)[0].type.tensor_type.elem_type = kind
    onnx.save(model, conv_model)
    with pytest.raises(ModelError, match=words):
        check_fits(conv_model, conv_card)


def test_a_model_without_card_says_what_to_do(tiny_model: Path, with_card: Callable[..., Path]) -> None:
    with pytest.raises(CardError, match=r"carries no segship card.*seg-export.*--card FILE"):
        read_card(with_card(tiny_model, None))


def test_a_bad_card_is_named_with_its_file(tiny_model: Path, with_card: Callable[..., Path]) -> None:
    path = with_card(tiny_model, "{")
    with pytest.raises(CardError, match="no valid JSON") as caught:
        read_card(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"text",
        b"\xff" * 20,
        (50).to_bytes(8, "little") + b"{",
        (2).to_bytes(8, "little") + b"[]",
        (4).to_bytes(8, "little") + b"null",
        (20).to_bytes(8, "little") + b'{"__metadata__":"x"}',
        (2000).to_bytes(8, "little") + b"[" * 2000,
    ],
)
def test_a_damaged_checkpoint_is_a_model_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(ModelError, match="no safetensors file"):
        read_card(path)


def test_a_checkpoint_without_card_is_a_card_error(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    header = json.dumps({"__metadata__": {"format": "pt"}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(CardError, match="no segship card"):
        read_card(path)


def test_a_model_fits_its_own_card(tiny_model: Path, tiny_labels_model: Path) -> None:
    check_fits(tiny_model, read_card(tiny_model))
    check_fits(tiny_labels_model, read_card(tiny_labels_model))


def test_open_sizes_fit_any_card(tmp_path: Path, tiny_model: Path) -> None:
    path = tmp_path / "open.onnx"
    onnx.save(_small_model(["batch", "channels", None, None]), path)
    check_fits(path, read_card(tiny_model))


def _other_size(card: ModelCard) -> ModelCard:
    return dataclasses.replace(card, preprocess=dataclasses.replace(card.preprocess, size=(32, 96)))


def _five_classes(card: ModelCard) -> ModelCard:
    return dataclasses.replace(card, class_names=card.class_names[:5], palette=card.palette[:5])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_other_size, r"takes pictures \(1, 3, 32, 96\), but its graph has \(1, 3, 48, 64\)"),
        (_five_classes, r"returns logits \(1, 5, 48, 64\), but its graph has \(1, 6, 48, 64\)"),
        (lambda card: dataclasses.replace(card, head="labels"), r"returns labels \(1, 48, 64\), but its graph has"),
        (lambda card: dataclasses.replace(card, input_name="pixels"), r"inputs \['image'\].*card says 'pixels'"),
        (lambda card: dataclasses.replace(card, output_name="masks"), r"outputs \['logits'\].*and 'masks'"),
    ],
)
def test_a_card_of_another_model_is_refused(
    tiny_model: Path, change: Callable[[ModelCard], ModelCard], words: str
) -> None:
    with pytest.raises(ModelError, match=words):
        check_fits(tiny_model, change(read_card(tiny_model)))


def test_a_binary_graph_has_one_plane_of_logits(
    binary_model: Path, binary_labels_model: Path, tiny_model: Path
) -> None:
    card = read_card(binary_model)
    check_fits(binary_model, card)
    check_fits(binary_labels_model, read_card(binary_labels_model))
    with pytest.raises(ModelError, match=r"returns logits \(1, 2, 48, 64\), but its graph has \(1, 1, 48, 64\)"):
        check_fits(binary_model, dataclasses.replace(card, task="multiclass"))
    with pytest.raises(ModelError, match=r"returns logits \(1, 1, 48, 64\), but its graph has \(1, 6, 48, 64\)"):
        check_fits(tiny_model, card)


def _metadata(path: Path) -> list[tuple[str, str]]:
    return [(entry.key, entry.value) for entry in onnx.load(path, load_external_data=False).metadata_props]


def test_a_card_that_is_written_takes_the_place_of_the_old_one_and_nothing_else_changes(conv_model: Path) -> None:
    model = onnx.load(conv_model)
    model.metadata_props.add(key="other", value="stays")
    model.metadata_props.add(key=CARD_KEY, value="a second one")
    model.metadata_props.add(key="", value="no key")
    onnx.save(model, conv_model)
    conv_model.chmod(0o640)
    card = dataclasses.replace(read_card_of(model), threshold=0.25)
    write_card(conv_model, card)
    assert read_card(conv_model) == card
    assert _metadata(conv_model) == [("other", "stays"), ("", "no key"), (CARD_KEY, card.to_json())]
    assert conv_model.stat().st_mode & 0o777 == 0o640
    written = onnx.load(conv_model)
    del written.metadata_props[:], model.metadata_props[:]
    assert written == model
    assert [path.name for path in conv_model.parent.iterdir()] == [conv_model.name]


def read_card_of(model: onnx.ModelProto) -> ModelCard:
    return ModelCard.from_json(model.metadata_props[0].value, origin="model")


def test_a_card_is_written_to_another_file(conv_model: Path, tmp_path: Path) -> None:
    before = conv_model.read_bytes()
    card = dataclasses.replace(read_card(conv_model), class_names=tuple("abcdeü"))
    write_card(conv_model, card, output=tmp_path / "new/other.onnx")
    assert read_card(tmp_path / "new/other.onnx") == card
    assert conv_model.read_bytes() == before


def test_a_card_is_written_to_a_model_with_weights_beside_it(conv_model: Path, tmp_path: Path) -> None:
    _with_external_data(conv_model)
    weights = (conv_model.parent / "weights.bin").read_bytes()
    card = dataclasses.replace(read_card(conv_model), threshold=0.25)
    with pytest.raises(ModelError, match=r"weights\.bin, so .*other\.onnx would lack them"):
        write_card(conv_model, card, output=tmp_path / "other.onnx")
    assert not (tmp_path / "other.onnx").exists()
    write_card(conv_model, card)
    assert (conv_model.parent / "weights.bin").read_bytes() == weights
    check_fits(conv_model, card)
    assert read_card(conv_model) == card


def _with_external_data(path: Path) -> None:
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert (path.parent / "weights.bin").exists()


@pytest.mark.parametrize("content", [b"", b"text", SMALL[: len(SMALL) // 2]])
def test_what_is_no_onnx_file_gets_no_card_and_has_no_sum(tmp_path: Path, conv_card: ModelCard, content: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError, match="no ONNX file"):
        write_card(path, conv_card)
    with pytest.raises(ModelError, match="no ONNX file"):
        content_sha256(path)
    assert path.read_bytes() == content
    assert [found.name for found in tmp_path.iterdir()] == [path.name]


@MANY
@given(st.lists(st.tuples(st.integers(0, len(SMALL) - 1), st.integers(0, 255)), min_size=1, max_size=6))
def test_a_card_for_a_file_with_changed_bytes_is_a_model_error_or_read_back(
    tmp_path: Path, conv_card: ModelCard, changes: list[tuple[int, int]]
) -> None:
    data = bytearray(SMALL)
    for place, value in changes:
        data[place] = value
    path = tmp_path / "changed.onnx"
    path.write_bytes(data)
    outcome = _written(path, conv_card)
    if isinstance(outcome, ModelError):
        assert len(str(outcome).splitlines()) == 1
    else:
        assert outcome == conv_card


def _written(path: Path, card: ModelCard) -> ModelCard | ModelError:
    try:
        write_card(path, card)
        assert len(content_sha256(path)) == 64
        return read_card(path)
    except ModelError as error:
        return error


def _certificate(text: str) -> Certificate:
    return Certificate(text, "PyTorch 2.13.0 on cpu", "3 random, 8 real", 1e-4, 1e-3, ())


def test_the_sum_stays_with_what_says_nothing_of_the_model(conv_model: Path) -> None:
    expected = content_sha256(conv_model)
    assert len(expected) == 64
    card = read_card(conv_model)
    write_card(conv_model, dataclasses.replace(card, certificate=_certificate(expected)))
    assert content_sha256(conv_model) == expected
    write_card(conv_model, dataclasses.replace(card, certificate=_certificate("of another")))
    assert content_sha256(conv_model) == expected
    model = onnx.load(conv_model)
    values = json.loads(model.metadata_props[0].value)
    model.metadata_props[0].value = json.dumps(dict(reversed(values.items())), indent=1).replace("1.0", "1")
    model.metadata_props.add(key="vendor", value="foreign")
    onnx.save(model, conv_model)
    assert content_sha256(conv_model) == expected


def test_the_sum_is_the_same_whether_the_card_lies_in_the_file_or_beside_it(
    conv_model: Path, conv_card: ModelCard, with_card: Callable[..., Path]
) -> None:
    bare = with_card(conv_model, None)
    assert content_sha256(bare, conv_card) == content_sha256(conv_model)
    other = dataclasses.replace(conv_card, threshold=0.25)
    assert content_sha256(bare, other) != content_sha256(conv_model)
    assert content_sha256(conv_model, other) == content_sha256(conv_model)


def _other_mean(model: onnx.ModelProto) -> None:
    model.metadata_props[0].value = model.metadata_props[0].value.replace("0.45", "0.46")


def _other_name(model: onnx.ModelProto) -> None:
    model.metadata_props[0].value = model.metadata_props[0].value.replace("fabric", "cloth")


def _other_node(model: onnx.ModelProto) -> None:
    model.graph.node[0].attribute[0].ints[0] = 0


def _other_weight(model: onnx.ModelProto) -> None:
    raw = bytearray(model.graph.initializer[0].raw_data)
    raw[0] ^= 1
    model.graph.initializer[0].raw_data = bytes(raw)


def _other_opset(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 18


def _no_card(model: onnx.ModelProto) -> None:
    del model.metadata_props[:]


@pytest.mark.parametrize("change", [_other_mean, _other_name, _other_node, _other_weight, _other_opset, _no_card])
def test_the_sum_tells_of_another_card_graph_and_weight(
    conv_model: Path, change: Callable[[onnx.ModelProto], None]
) -> None:
    before = content_sha256(conv_model)
    model = onnx.load(conv_model)
    change(model)
    onnx.save(model, conv_model)
    assert content_sha256(conv_model) != before


def test_the_sum_tells_of_weights_beside_the_file(conv_model: Path) -> None:
    _with_external_data(conv_model)
    before = content_sha256(conv_model)
    weights = conv_model.parent / "weights.bin"
    changed = bytearray(weights.read_bytes())
    changed[-1] ^= 1
    weights.write_bytes(changed)
    assert content_sha256(conv_model) != before
    weights.unlink()
    with pytest.raises(ModelError, match=r"'weights\.bin', which cannot be read"):
        content_sha256(conv_model)


def test_the_sum_of_a_file_with_a_damaged_card_is_a_card_error(conv_model: Path) -> None:
    model = onnx.load(conv_model)
    model.metadata_props[0].value = "{"
    onnx.save(model, conv_model)
    with pytest.raises(CardError, match="no valid JSON"):
        content_sha256(conv_model)


def test_the_card_key_is_what_earlier_files_carry() -> None:
    assert CARD_KEY == "segship"
