import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from segship.runtime.card import ModelCard
from segship.runtime.errors import ModelError
from segship.runtime.external_data import external_files
from segship.runtime.model_file import check_fits
from segship.runtime.preprocess import Preprocess
from segship.runtime.protobuf import length_field

MANY = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
CARD = ModelCard(("a", "b", "c"), ((0, 0, 0),) * 3, Preprocess((4, 6)), output_name="logits")
SIZE = 24


def _tensor(name: str, **entries: object) -> onnx.TensorProto:
    tensor = onnx.TensorProto(name=name, data_type=onnx.TensorProto.FLOAT, dims=[6])
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def _model(*initializers: onnx.TensorProto, nodes: tuple[onnx.NodeProto, ...] = ()) -> onnx.ModelProto:
    values = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 3, 4, 6]) for name in ("image", "logits")
    ]
    identity = onnx.helper.make_node("Identity", ["image"], ["logits"])
    graph = onnx.helper.make_graph([identity, *nodes], "small", [values[0]], [values[1]], initializers)
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)])


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write a model beside a file ``weights.bin`` of 24 bytes, in a folder of its own."""
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    (folder / "weights.bin").write_bytes(bytes(SIZE))
    (tmp_path / "secret.bin").write_bytes(bytes(SIZE))

    def write_model(*initializers: onnx.TensorProto, nodes: tuple[onnx.NodeProto, ...] = ()) -> Path:
        path = folder / "model.onnx"
        path.write_bytes(_model(*initializers, nodes=nodes).SerializeToString())
        return path

    return write_model


def test_the_files_are_listed_once_in_the_order_of_the_graph(write: Callable[..., Path]) -> None:
    path = write(
        _tensor("a", location="weights.bin", offset=0, length=12),
        _tensor("b", location="./sub/more.bin"),
        _tensor("c", location="weights.bin", offset=12, length=12),
        onnx.numpy_helper.from_array(np.zeros(3, np.float32), "inside"),
    )
    (path.parent / "sub/more.bin").write_bytes(bytes(SIZE))
    assert external_files(path) == [path.parent / "weights.bin", path.parent / "sub/more.bin"]
    check_fits(path, CARD)


def test_a_model_that_onnx_saved_with_external_data_is_whole_anywhere(tmp_path: Path) -> None:
    weights = onnx.numpy_helper.from_array(np.arange(1000, dtype=np.float32), "weights")
    model = _model(weights)
    (tmp_path / "first").mkdir()
    onnx.save(model, tmp_path / "first/model.onnx", save_as_external_data=True, location="model.onnx.data")
    moved = (tmp_path / "first").rename(tmp_path / "second")
    assert external_files(moved / "model.onnx") == [moved / "model.onnx.data"]
    (moved / "model.onnx.data").unlink()
    with pytest.raises(ModelError, match=r"'model\.onnx\.data', which cannot be read \(No such file"):
        external_files(moved / "model.onnx")


def test_a_model_without_external_data_has_no_such_files(write: Callable[..., Path]) -> None:
    assert external_files(write(onnx.numpy_helper.from_array(np.zeros(3, np.float32), "inside"))) == []


def _constant(tensor: onnx.TensorProto) -> onnx.NodeProto:
    return onnx.helper.make_node("Constant", [], ["c"], value=tensor)


def _branch(tensor: onnx.TensorProto) -> onnx.GraphProto:
    output = onnx.helper.make_tensor_value_info("c", onnx.TensorProto.FLOAT, [6])
    return onnx.helper.make_graph([_constant(tensor)], "branch", [], [output], [])


def _hidden_places(bad: onnx.TensorProto) -> dict[str, onnx.ModelProto]:
    """Return models that hold a tensor wherever onnx.proto3 lets them."""
    places = {
        "initializer": _model(bad),
        "constant": _model(nodes=(_constant(bad),)),
        "tensors": _model(nodes=(onnx.helper.make_node("Many", [], ["c"], tensors=[bad]),)),
        "branch": _model(nodes=(onnx.helper.make_node("If", ["image"], ["c"], then_branch=_branch(bad)),)),
        "branches": _model(nodes=(onnx.helper.make_node("Case", [], ["c"], graphs=[_branch(bad)]),)),
    }
    places["sparse"] = sparse = _model()
    sparse.graph.sparse_initializer.add().values.CopyFrom(bad)
    places["sparse indices"] = indices = _model()
    indices.graph.sparse_initializer.add().indices.CopyFrom(bad)
    places["sparse attribute"] = attribute = _model(nodes=(onnx.helper.make_node("Constant", [], ["c"]),))
    attribute.graph.node[1].attribute.add(name="sparse_value", type=11).sparse_tensor.values.CopyFrom(bad)
    places["sparse attributes"] = attributes = _model(nodes=(onnx.helper.make_node("Constant", [], ["c"]),))
    attributes.graph.node[1].attribute.add(name="many", type=12).sparse_tensors.add().values.CopyFrom(bad)
    places["function"] = function = _model()
    function.functions.add(name="f", domain="d").node.append(_constant(bad))
    places["function default"] = default = _model()
    default.functions.add(name="f", domain="d").attribute_proto.add(name="a", type=4).t.CopyFrom(bad)
    places["training"] = training = _model()
    training.training_info.add().initialization.initializer.append(bad)
    return places


@pytest.mark.parametrize("place", sorted(_hidden_places(onnx.TensorProto())))
def test_a_tensor_is_found_wherever_a_model_can_hold_one(tmp_path: Path, place: str) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(_hidden_places(_tensor("bad", location="../secret.bin"))[place].SerializeToString())
    with pytest.raises(ModelError, match="which may lead out of its folder"):
        external_files(path)


@pytest.mark.parametrize(
    ("location", "words"),
    [
        ("../secret.bin", "may lead out of its folder"),
        ("sub/../weights.bin", "may lead out of its folder"),
        ("/etc/passwd", "no relative path"),
        ("..\\secret.bin", "no relative path"),
        ("C:weights.bin", "no relative path"),
        ("C:/weights.bin", "no relative path"),
        ("", "names no file"),
        (".", "names no file"),
        ("sub", "no plain file"),
        ("nothing.bin", "cannot be read"),
        ("weights.bin/more", "cannot be read"),
        ("weights\0.bin", "cannot be read"),
        ("x" * 300, "cannot be read"),
        ("*/_ORT_MEM_ADDR_/*", "cannot be read"),
        ("new\nline", "cannot be read"),
    ],
)
def test_a_place_that_is_not_the_models_own_is_refused(write: Callable[..., Path], location: str, words: str) -> None:
    path = write(_tensor("weights", location=location))
    with pytest.raises(ModelError, match=words) as caught:
        check_fits(path, CARD)
    assert str(path) in str(caught.value)
    assert "copy both together" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_links_are_refused(write: Callable[..., Path], tmp_path: Path) -> None:
    path = write(_tensor("weights", location="linked.bin"))
    linked = path.parent / "linked.bin"
    linked.symlink_to(tmp_path / "secret.bin")
    with pytest.raises(ModelError, match=r"on whose way .*linked\.bin is a link"):
        external_files(path)
    linked.unlink()
    linked.symlink_to("weights.bin")
    with pytest.raises(ModelError, match=r"linked\.bin is a link"):
        external_files(path)
    linked.unlink()
    os.link(tmp_path / "secret.bin", linked)
    with pytest.raises(ModelError, match="a hard link"):
        external_files(path)
    linked.unlink()
    os.mkfifo(linked)
    with pytest.raises(ModelError, match="no plain file"):
        external_files(path)


def test_a_linked_folder_on_the_way_is_refused(write: Callable[..., Path], tmp_path: Path) -> None:
    path = write(_tensor("weights", location="folder/secret.bin"))
    (path.parent / "folder").symlink_to(tmp_path)
    with pytest.raises(ModelError, match="folder is a link"):
        external_files(path)


def test_a_model_that_is_reached_through_a_link_is_read_beside_the_link(
    write: Callable[..., Path], tmp_path: Path
) -> None:
    path = write(_tensor("weights", location="weights.bin"))
    (tmp_path / "link").symlink_to(path.parent)
    assert external_files(tmp_path / "link/model.onnx") == [tmp_path / "link/weights.bin"]


@pytest.mark.parametrize(
    "entries",
    [
        {"offset": SIZE + 1},
        {"offset": 0, "length": SIZE + 1},
        {"offset": 20, "length": 5},
        {"length": 10**18},
    ],
)
def test_weights_beyond_the_files_end_are_refused(write: Callable[..., Path], entries: dict[str, int]) -> None:
    with pytest.raises(ModelError, match=r"of .*weights\.bin, which has 24; copy that file again"):
        external_files(write(_tensor("weights", location="weights.bin", **entries)))


@pytest.mark.parametrize("text", ["-1", "1e3", "", " 1", "٣", "9" * 5000])
def test_an_offset_that_is_no_count_is_refused(write: Callable[..., Path], text: str) -> None:
    with pytest.raises(ModelError, match="the offset or length"):
        external_files(write(_tensor("weights", location="weights.bin", offset=text)))


def test_two_locations_of_one_tensor_are_refused(write: Callable[..., Path]) -> None:
    tensor = _tensor("weights", location="weights.bin")
    tensor.external_data.add(key="location", value="../secret.bin")
    with pytest.raises(ModelError, match="two values for 'location'"):
        external_files(write(tensor))


def test_a_place_counts_even_if_the_tensor_does_not_say_that_it_is_external(write: Callable[..., Path]) -> None:
    tensor = _tensor("weights", location="../secret.bin")
    tensor.data_location = onnx.TensorProto.DEFAULT
    with pytest.raises(ModelError, match="may lead out of its folder"):
        external_files(write(tensor))


def test_an_external_tensor_without_place_is_refused(write: Callable[..., Path]) -> None:
    with pytest.raises(ModelError, match="names no file"):
        external_files(write(_tensor("weights")))


def test_graphs_in_graphs_are_followed_to_any_depth(tmp_path: Path) -> None:
    graph = length_field(5, _tensor("deep", location="../secret.bin").SerializeToString())
    for _ in range(2000):
        graph = length_field(1, length_field(5, length_field(6, graph)))
    path = tmp_path / "deep.onnx"
    path.write_bytes(length_field(7, graph))
    with pytest.raises(ModelError, match="may lead out of its folder"):
        external_files(path)


def test_a_graph_of_millions_of_fields_is_refused_soon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("segship.runtime.external_data.MAX_FIELDS", 1000)
    path = tmp_path / "wide.onnx"
    path.write_bytes(length_field(7, length_field(1, b"\x08\x00" * 20) * 100))
    with pytest.raises(ModelError, match="more than 1000 fields"):
        external_files(path)


def test_what_weights_in_the_file_look_like_is_not_looked_at(tmp_path: Path) -> None:
    raw = _tensor("inside", location="../secret.bin").SerializeToString() + b"\xff" * 100
    tensor = onnx.TensorProto(name="weights", data_type=onnx.TensorProto.UINT8, dims=[len(raw)], raw_data=raw)
    path = tmp_path / "model.onnx"
    path.write_bytes(_model(tensor).SerializeToString())
    assert external_files(path) == []


HOSTILE = _model(
    _tensor("weights", location="weights.bin", offset=4, length=8),
    nodes=(onnx.helper.make_node("If", ["image"], ["c"], then_branch=_branch(_tensor("b", location="weights.bin"))),),
).SerializeToString()


@MANY
@given(st.lists(st.tuples(st.integers(0, len(HOSTILE) - 1), st.integers(0, 255)), min_size=1, max_size=6))
def test_a_model_with_changed_bytes_is_a_model_error_or_stays_in_its_folder(
    tmp_path: Path, changes: list[tuple[int, int]]
) -> None:
    data = bytearray(HOSTILE)
    for place, value in changes:
        data[place] = value
    _in_folder_or_model_error(tmp_path, bytes(data))


@MANY
@given(st.integers(0, len(HOSTILE)), st.binary(max_size=30))
def test_a_truncated_or_continued_model_is_a_model_error_or_stays_in_its_folder(
    tmp_path: Path, length: int, more: bytes
) -> None:
    _in_folder_or_model_error(tmp_path, HOSTILE[:length] + more)


@MANY
@given(st.text(max_size=20))
def test_any_location_is_a_model_error_or_in_the_folder(tmp_path: Path, location: str) -> None:
    _in_folder_or_model_error(tmp_path, _model(_tensor("weights", location=location)).SerializeToString())


def _in_folder_or_model_error(folder: Path, data: bytes) -> None:
    (folder / "weights.bin").write_bytes(bytes(SIZE))
    path = folder / "model.onnx"
    path.write_bytes(data)
    outcome = _files(path)
    if isinstance(outcome, ModelError):
        assert str(path) in str(outcome)
        assert len(str(outcome).splitlines()) == 1
    else:
        assert all(file.resolve().parent == folder.resolve() and file.is_file() for file in outcome)


def _files(path: Path) -> list[Path] | ModelError:
    try:
        return external_files(path)
    except ModelError as error:
        return error
