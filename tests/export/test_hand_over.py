import dataclasses
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
import torch
from google.protobuf import text_format
from numpy.typing import NDArray
from torch import nn
from tritonclient.grpc.model_config_pb2 import DataType, ModelConfig

from segship.export.hand_over import hand_over
from segship.export.torch_backend import TorchBackend
from segship.export.trace import trace
from segship.export.wrapper import deployable
from segship.runtime.card import ModelCard
from segship.runtime.certificate import Certificate, Proof
from segship.runtime.compare import Expected
from segship.runtime.errors import CardError, ModelError, OutputError
from segship.runtime.golden import Example, read_golden, write_golden
from segship.runtime.labels import labels_dtype
from segship.runtime.model_file import content_sha256, read_card, write_card
from segship.runtime.palettes import distinct_colors
from segship.runtime.preprocess import FULL_SCALE, Preprocess
from segship.runtime.segmenter import Segmenter
from segship.training.checkpoint import file_sha256

SIZE, PICTURE_SIZE = (24, 40), (61, 83)


@dataclass(frozen=True)
class Exported:
    """A model in a folder, its golden outputs, and the picture that these are of."""

    model: Path
    golden: Path
    picture: Path
    card: ModelCard


Make = Callable[..., Exported]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Export two convolutions as a card of these values says."""

    def export(form: dict[str, Any] | None = None, classes: int = 5, **values: Any) -> Exported:
        card = _card(form or {}, classes, values)
        network = _network(card)
        folder = tmp_path / "exported"
        folder.mkdir(exist_ok=True)
        model = _write_model(folder / "street.onnx", network, card)
        picture = _write_picture(folder / "picture.png", card)
        golden = _write_golden(folder / "golden_of_street.npz", network, model, picture, card)
        return Exported(model, golden, picture, card)

    return export


def _card(form: dict[str, Any], classes: int, values: dict[str, Any]) -> ModelCard:
    channels = form.get("channels", 3)
    numbers = {"mean": (0.4, 0.45, 0.5)[:channels], "std": (0.2, 0.21, 0.22)[:channels]}
    order = {} if channels == 3 else {"color_order": "grey"}
    names = tuple(f"class {number}" for number in range(classes))
    return ModelCard(
        names,
        distinct_colors(classes),
        Preprocess(**{"size": SIZE, **numbers, **order, **form}),
        task="binary" if "threshold" in values else "multiclass",
        ignore_index=65535,
        output_name=values.get("head", "logits"),
        **values,
    )


def _network(card: ModelCard) -> nn.Module:
    torch.manual_seed(3)
    last = nn.Conv2d(6, card.num_logits, 3, padding=1)
    network = nn.Sequential(nn.Conv2d(card.preprocess.channels, 6, 3, padding=1), nn.ReLU(), last).eval()
    if card.task == "binary":  # so that both classes appear
        with torch.no_grad():
            values = network(torch.rand(1, card.preprocess.channels, *SIZE) - 0.5)
            last.bias += card.logit_threshold - values.median()
    return network


def _write_model(path: Path, network: nn.Module, card: ModelCard) -> Path:
    onnx.save(trace(deployable(network, card), card, 17), path)
    write_card(path, card)
    return path


def _write_picture(path: Path, card: ModelCard) -> Path:
    rng, form = np.random.default_rng(5), card.preprocess
    full, shape = FULL_SCALE[form.depth], (card.frame or PICTURE_SIZE)
    coarse = rng.integers(0, full, (7, 9, form.channels), form.depth)
    assert cv2.imwrite(str(path), cv2.resize(coarse, shape[::-1], interpolation=cv2.INTER_LINEAR))
    return path


def _write_golden(path: Path, network: nn.Module, model: Path, picture: Path, card: ModelCard) -> Path:
    plain = dataclasses.replace(card, head="logits", output_name="logits", input_form="float", frame=None)
    with Segmenter("PyTorch", backend=TorchBackend.of_network(_Tuple(network)), card=plain) as reference:
        said = reference(picture)
    with Segmenter(model, backend="ort", device="cpu") as engine:
        expected = Expected.of(said, engine.processing.stages(picture), card)
    write_golden(path, card, content_sha256(model), [Example(picture.name, picture.read_bytes(), expected)])
    return path


class _Tuple(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor]:
        return (self.network(image),)


def _handed_over(exported: Exported, folder: Path) -> str:
    hand_over(folder, exported.model, exported.golden)
    return (folder / "README.md").read_text(encoding="utf-8")


CARDS: dict[str, dict[str, Any]] = {
    "float": {},
    "another order": {"form": {"color_order": "BGR"}},
    "image_max": {"form": {"scale": "image_max", "color_order": "BGR"}},
    "resized in float": {"form": {"interpolation": "linear_float"}},
    "grey": {"form": {"channels": 1}},
    "deep": {"form": {"depth": "uint16"}},
    "deep grey": {"form": {"depth": "uint16", "channels": 1}},
    "labels": {"head": "labels"},
    "many labels": {"head": "labels", "classes": 300},
    "many logits": {"classes": 300},
    "probabilities": {"head": "probabilities"},
    "pixels": {"input_form": "pixels"},
    "grey pixels": {"input_form": "pixels", "form": {"channels": 1}},
    "deep pixels": {"input_form": "pixels", "form": {"depth": "uint16"}},
    "pixels to labels": {"input_form": "pixels", "head": "labels", "form": {"scale": "image_max"}},
    "binary": {"classes": 2, "threshold": 0.3},
    "binary labels": {"classes": 2, "threshold": 0.3, "head": "labels"},
    "binary probabilities": {"classes": 2, "threshold": 0.3, "head": "probabilities"},
    "frame": {"input_form": "pixels", "frame": PICTURE_SIZE, "form": {"interpolation": "linear_float"}},
    "frame to labels": {
        "input_form": "pixels",
        "frame": PICTURE_SIZE,
        "head": "labels",
        "form": {"interpolation": "linear_float"},
    },
    "binary frame": {"input_form": "pixels", "frame": PICTURE_SIZE, "classes": 2, "threshold": 0.3},
    "letterbox": {"form": {"resize": "letterbox", "fill": 114}},
    "grey letterbox in float": {"form": {"resize": "letterbox", "channels": 1, "interpolation": "linear_float"}},
    "letterbox of pixels to labels": {
        "input_form": "pixels",
        "head": "labels",
        "form": {"resize": "letterbox", "depth": "uint16", "fill": 30000, "size": (40, 24)},
    },
    "binary letterbox to probabilities": {
        "classes": 2,
        "threshold": 0.3,
        "head": "probabilities",
        "form": {"resize": "letterbox", "scale": "image_max"},
    },
    "pad": {"form": {"resize": "pad", "fill": 9, "size": (72, 88)}},
    "pad to labels": {"head": "labels", "form": {"resize": "pad", "channels": 1, "size": (61, 88)}},
    "batches": {"dynamic": ("batch",)},
    "any size": {"dynamic": ("batch", "size"), "stride": 8},
    "tiles": {"tile_overlap": 0.25},
    "tiles of pixels": {"tile_overlap": 0.5, "input_form": "pixels", "form": {"scale": "image_max"}},
    "binary tiles larger than the picture": {
        "tile_overlap": 0.3,
        "classes": 2,
        "threshold": 0.6,
        "form": {"channels": 1, "size": (72, 40)},
    },
}


@pytest.mark.parametrize("values", CARDS.values(), ids=CARDS)
def test_the_program_on_the_page_says_what_a_segmenter_says(
    make: Make, values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exported = make(**values)
    page = _handed_over(exported, tmp_path / "hand_over")
    monkeypatch.chdir(tmp_path / "hand_over")
    shutil.copyfile(exported.picture, "photo.png")
    labels = _run_program(page)
    with Segmenter("street.onnx", backend="ort", device="cpu") as segmenter:
        expected = segmenter("photo.png").labels
    assert labels.dtype == expected.dtype == labels_dtype(exported.card.num_classes)
    np.testing.assert_array_equal(labels, expected)
    assert len(np.unique(labels)) >= 2


@pytest.mark.parametrize("name", ["frame", "frame to labels", "tiles", "pad"])
def test_it_says_what_the_golden_outputs_say(
    make: Make, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = _handed_over(make(**CARDS[name]), tmp_path / "hand_over")
    monkeypatch.chdir(tmp_path / "hand_over")
    (example,) = read_golden(Path("golden.npz")).examples(read_card(Path("street.onnx")))
    Path("photo.png").write_bytes(example.file)
    labels, expected = _run_program(page), example.expected
    assert labels.shape == expected.labels.shape
    assert ((labels == expected.labels) | (expected.gap <= 1)).all()


def _run_program(page: str) -> NDArray[Any]:
    (program,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert "segship" not in program
    assert max(map(len, program.splitlines())) <= 110
    names: dict[str, Any] = {}
    exec(program, names)
    labels = names["labels"]
    assert isinstance(labels, np.ndarray)
    return labels


def test_the_folder_holds_all_that_is_needed(make: Make, tmp_path: Path) -> None:
    exported = make()
    page = _handed_over(exported, tmp_path / "hand_over")
    files = {str(path.relative_to(tmp_path / "hand_over")) for path in (tmp_path / "hand_over").rglob("*.*")}
    assert files == {
        "README.md",
        "street.onnx",
        "card.json",
        "golden.npz",
        "triton/street/config.pbtxt",
        "triton/street/labels.txt",
        "triton/street/1/model.onnx",
    }
    assert (tmp_path / "hand_over/golden.npz").read_bytes() == exported.golden.read_bytes()
    for copy in ("street.onnx", "triton/street/1/model.onnx"):
        assert (tmp_path / "hand_over" / copy).read_bytes() == exported.model.read_bytes()
        assert (tmp_path / "hand_over" / copy).stat().st_nlink == 1
    text = (tmp_path / "hand_over/card.json").read_text(encoding="utf-8")
    assert ModelCard.from_json(text, origin="card.json") == exported.card
    assert file_sha256(exported.model) in page


def test_the_page_names_rules_and_numbers(make: Make, tmp_path: Path) -> None:
    exported = make()
    page = _handed_over(exported, tmp_path / "hand_over")
    gain, bias = exported.card.preprocess.gain_and_bias(255)
    for channel, name in enumerate(("red", "green", "blue")):
        (row,) = re.findall(rf"\| {name} \| (.*) \| (.*) \|", page)
        assert [np.float32(text) for text in row] == [gain[channel], bias[channel]]
    for words in (
        "**Resize** to 40 wide and 24 high",
        "`cv2.resize(…, interpolation=cv2.INTER_LINEAR_EXACT)`",
        "(value / 255 − mean) / standard deviation, with the means 0.4, 0.45, 0.5 and the standard deviations 0.2,",
        "as `image`: (1, 3, 24, 40) float32, that is picture, channel, row, column, channels in the order red, green",
        "`logits`: (1, 5, 24, 40) float32",
        "of equal ones, the lowest",
        "| 4 | class 4 | ",
        "seg-check model street.onnx --golden golden.npz",
        "carries no certificate",
    ):
        assert words in page


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("another order", ["| blue |", "channels in the order blue, green, red"]),
        ("image_max", ["divide by the largest value", "| channel | mean | standard deviation |"]),
        ("resized in float", ["as float32, linearly", "without rounding"]),
        ("deep grey", ["16-bit grey, (H, W, 1) uint16", "(value / 65535 − mean)"]),
        ("labels", ["`labels`: (1, 24, 40) uint8", "`cv2.INTER_NEAREST_EXACT`"]),
        ("many labels", ["(1, 24, 40) uint16", "`triton/street/labels.txt`"]),
        ("probabilities", ["the probability of each class", "the logarithms of the planes"]),
        ("pixels", ["**Do not normalise**", "(1, 24, 40, 3) uint8", "order red, green, blue"]),
        ("binary", [f"1 (`class 1`) where its value is above {np.log(0.3 / 0.7):g} (a probability of 0.3)"]),
        ("binary probabilities", ["log(p) − log(1 − p)"]),
        ("frame", ["**Do not resize**: the picture must be 83 wide and 61 high", "(1, 61, 83, 3) uint8"]),
        ("letterbox", ["just fits into 40 wide and 24 high", "**Letterbox** it", "with 114, 114, 114", "**Cut out**"]),
        (
            "pad",
            ["**Do not resize**: a picture that is larger than 88", "**Pad** to 88 wide and 72 high", "with 9, 9, 9"],
        ),
        ("batches", ["(N, 3, 24, 40)", "`N` may be any number", "up to 8 waiting pictures"]),
        ("any size", ["(N, 3, h, w)", "any multiples of 8", "(N, 5, h, w)"]),
        ("tiles", ["**Cut into tiles** of 40 wide and 24 high", "round(side · 0.75)", "**Blend the tiles**"]),
    ],
)
def test_the_page_says_what_is_different_for_this_card(make: Make, name: str, words: list[str], tmp_path: Path) -> None:
    page = _handed_over(make(**CARDS[name]), tmp_path / "hand_over")
    for part in words:
        assert part in page


@pytest.mark.parametrize("name", ["pad", "pad to labels"])
def test_a_padded_picture_is_not_resized_on_its_way_back(make: Make, name: str, tmp_path: Path) -> None:
    page = _handed_over(make(**CARDS[name]), tmp_path / "hand_over")
    steps = page.partition("## 2. ")[2].partition("## 3. ")[0]
    assert "**Cut out** the picture's rows and columns" in steps
    assert "**Resize**" not in steps


def test_a_graph_of_another_origin_is_not_described(make: Make, tmp_path: Path) -> None:
    exported = make()
    model = onnx.load(exported.model)
    kept = model.graph.output[0].name
    model.graph.node[-1].output[0] = "kept"
    model.graph.node.append(onnx.helper.make_node("Transpose", ["kept"], [kept], perm=[0, 2, 3, 1]))
    shape = [1, *SIZE, 5]
    model.graph.output[0].CopyFrom(onnx.helper.make_tensor_value_info(kept, onnx.TensorProto.FLOAT, shape))
    onnx.save(model, exported.model)
    write_card(exported.model, dataclasses.replace(exported.card, output_layout="NHWC"))
    with pytest.raises(ModelError, match="was not made by seg-export"):
        hand_over(tmp_path / "hand_over", exported.model, exported.golden)


def test_names_that_would_break_a_table_or_a_list_do_not(make: Make, tmp_path: Path) -> None:
    exported = make()
    write_card(exported.model, dataclasses.replace(exported.card, class_names=("a|b", "two\nlines", "c", "d", "e")))
    write_golden(exported.golden, exported.card, content_sha256(exported.model), [])
    page = _handed_over(exported, tmp_path / "hand_over")
    assert "| 0 | a\\|b | " in page
    assert "| 1 | two lines | " in page
    names = (tmp_path / "hand_over/triton/street/labels.txt").read_text(encoding="utf-8")
    assert names == "a|b\ntwo lines\nc\nd\ne\n"


def test_the_page_says_on_which_engines_it_was_proven(make: Make, tmp_path: Path) -> None:
    exported = make()
    figures = {"max_abs": 1e-5, "p99_abs": 1e-6, "cosine": 1.0, "unexplained_flips": 0, "miou": 1.0}
    rows = (
        Proof("ort", "ONNX Runtime 1.31.1", "cpu", "fp32", "a gate", passes=True, label_agreement=1.0, **figures),
        Proof("openvino", "OpenVINO 2026.4", "cpu", "bf16", "", passes=False, label_agreement=0.9985, **figures),
    )
    certificate = Certificate(content_sha256(exported.model), "PyTorch 2.13.0 on cpu", "8 pictures", 1e-4, 1e-3, rows)
    write_card(exported.model, dataclasses.replace(exported.card, certificate=certificate))
    page = _handed_over(exported, tmp_path / "hand_over")
    assert "compared with PyTorch 2.13.0 on cpu, on 8 pictures" in page
    assert "| ONNX Runtime 1.31.1 | cpu | fp32 | 100.000 % | passed |" in page
    assert "| OpenVINO 2026.4 | cpu | bf16 | 99.850 % | recorded only |" in page


def _config(folder: Path) -> Any:
    return text_format.Parse((folder / "triton/street/config.pbtxt").read_text(encoding="utf-8"), ModelConfig())


@pytest.mark.parametrize(
    ("name", "batch", "takes", "returns", "has_labels"),
    [
        ("float", 0, ("TYPE_FP32", [1, 3, 24, 40]), ("TYPE_FP32", [1, 5, 24, 40]), True),
        ("batches", 8, ("TYPE_FP32", [3, 24, 40]), ("TYPE_FP32", [5, 24, 40]), True),
        ("any size", 8, ("TYPE_FP32", [3, -1, -1]), ("TYPE_FP32", [5, -1, -1]), True),
        ("labels", 0, ("TYPE_FP32", [1, 3, 24, 40]), ("TYPE_UINT8", [1, 24, 40]), True),
        ("many labels", 0, ("TYPE_FP32", [1, 3, 24, 40]), ("TYPE_UINT16", [1, 24, 40]), True),
        ("pixels", 0, ("TYPE_UINT8", [1, 24, 40, 3]), ("TYPE_FP32", [1, 5, 24, 40]), True),
        ("binary", 0, ("TYPE_FP32", [1, 3, 24, 40]), ("TYPE_FP32", [1, 1, 24, 40]), False),
        ("binary labels", 0, ("TYPE_FP32", [1, 3, 24, 40]), ("TYPE_UINT8", [1, 24, 40]), True),
        ("frame to labels", 0, ("TYPE_UINT8", [1, 61, 83, 3]), ("TYPE_UINT8", [1, 61, 83]), True),
    ],
)
def test_triton_is_told_what_the_graph_takes_and_returns(
    make: Make,
    tmp_path: Path,
    name: str,
    batch: int,
    takes: tuple[str, list[int]],
    returns: tuple[str, list[int]],
    has_labels: bool,
) -> None:
    exported = make(**CARDS[name])
    _handed_over(exported, tmp_path / "hand_over")
    config = _config(tmp_path / "hand_over")
    assert (config.name, config.platform, config.max_batch_size) == ("street", "onnxruntime_onnx", batch)
    assert config.HasField("dynamic_batching") == (batch > 0)
    for described, tensor, (dtype, sides) in (
        (config.input, exported.card.input_name, takes),
        (config.output, exported.card.output_name, returns),
    ):
        (one,) = described
        assert (one.name, DataType.Name(one.data_type), list(one.dims)) == (tensor, dtype, sides)
    assert config.output[0].label_filename == ("labels.txt" if has_labels else "")
    names = (tmp_path / "hand_over/triton/street/labels.txt").read_text(encoding="utf-8").splitlines()
    assert names == list(exported.card.class_names)


def test_tritons_dims_are_those_of_the_graph(make: Make, tmp_path: Path) -> None:
    _handed_over(make(dynamic=("batch",), head="labels"), tmp_path / "hand_over")
    graph = onnx.load(tmp_path / "hand_over/triton/street/1/model.onnx").graph
    config = _config(tmp_path / "hand_over")
    for described, value in ((config.input[0], graph.input[0]), (config.output[0], graph.output[0])):
        sides = value.type.tensor_type.shape.dim
        assert sides[0].dim_param
        assert list(described.dims) == [side.dim_value for side in sides[1:]]


def test_weights_beside_the_model_come_along_and_load_from_both_places(make: Make, tmp_path: Path) -> None:
    exported = make()
    model = onnx.load(exported.model)
    onnx.save(model, exported.model, save_as_external_data=True, location="street.weights", size_threshold=0)
    write_golden(exported.golden, exported.card, content_sha256(exported.model), [])
    _handed_over(exported, tmp_path / "hand_over")
    shutil.rmtree(exported.model.parent)
    for copy in ("street.onnx", "triton/street/1/model.onnx"):
        with Segmenter(tmp_path / "hand_over" / copy, backend="ort", device="cpu") as segmenter:
            assert segmenter(np.zeros((30, 30, 3), np.uint8)).labels.shape == (30, 30)


def test_a_folder_with_a_hand_over_is_replaced_only_when_asked_for(make: Make, tmp_path: Path) -> None:
    folder = tmp_path / "hand_over"
    folder.mkdir()  # an empty one will do
    _handed_over(make(), folder)
    (folder / "old.txt").touch()
    exported = make(head="labels")
    with pytest.raises(OutputError, match="holds a hand-over already; add --overwrite"):
        hand_over(folder, exported.model, exported.golden)
    assert read_card(folder / "street.onnx").head == "logits"
    hand_over(folder, exported.model, exported.golden, overwrite=True)
    assert read_card(folder / "street.onnx").head == "labels"
    assert not (folder / "old.txt").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"exported", "hand_over"}


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_with_anything_else_is_left_alone(make: Make, tmp_path: Path, overwrite: bool) -> None:
    exported, folder = make(), tmp_path / "thesis"
    folder.mkdir()
    (folder / "chapter.tex").write_text("precious")
    with pytest.raises(OutputError, match=r"holds other things than a hand-over \(chapter.tex"):
        hand_over(folder, exported.model, exported.golden, overwrite=overwrite)
    assert [path.name for path in folder.iterdir()] == ["chapter.tex"]
    with pytest.raises(OutputError, match="cannot write into"):
        hand_over(folder / "chapter.tex", exported.model, exported.golden, overwrite=overwrite)


def test_what_fails_leaves_nothing_and_the_old_folder_whole(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, exported = tmp_path / "hand_over", make()
    _handed_over(exported, folder)
    before = {path: path.stat().st_ino for path in folder.rglob("*")}

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shutil.copyfile", full)
    for place in (folder, tmp_path / "other"):
        with pytest.raises(OutputError, match="No space left on device"):
            hand_over(place, exported.model, exported.golden, overwrite=True)
    assert {path: path.stat().st_ino for path in folder.rglob("*")} == before
    assert {path.name for path in tmp_path.iterdir()} == {"exported", "hand_over"}


def test_golden_outputs_of_another_model_are_refused(make: Make, tmp_path: Path) -> None:
    exported = make()
    form = dataclasses.replace(exported.card.preprocess, mean=(0.1, 0.1, 0.1))
    write_card(exported.model, dataclasses.replace(exported.card, preprocess=form))
    with pytest.raises(ModelError, match="was made for another model"):
        hand_over(tmp_path / "hand_over", exported.model, exported.golden)
    assert not (tmp_path / "hand_over").exists()


def test_a_model_without_a_card_is_refused(make: Make, tmp_path: Path) -> None:
    exported = make()
    model = onnx.load(exported.model)
    del model.metadata_props[:]
    onnx.save(model, exported.model)
    with pytest.raises(CardError, match="carries no segship card"):
        hand_over(tmp_path / "hand_over", exported.model, exported.golden)


def test_the_server_gets_a_name_that_is_also_a_folders(make: Make, tmp_path: Path) -> None:
    exported = make()
    model = exported.model.rename(exported.model.with_name('my "street" ä.onnx'))
    page = _handed_over(dataclasses.replace(exported, model=model), tmp_path / "hand_over")
    config = (tmp_path / "hand_over/triton/my__street___/config.pbtxt").read_text(encoding="utf-8")
    assert text_format.Parse(config, ModelConfig()).name == "my__street___"
    (program,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert f"InferenceSession({json.dumps(model.name, ensure_ascii=False)}," in program
