import dataclasses
import sys
import textwrap
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from segship.export.foreign import ForeignNetwork, foreign_card, load_foreign
from segship.export.foreign_code import is_target
from segship.runtime.card import ModelCard
from segship.runtime.errors import CardError, CheckpointError, ExportError
from segship.training.checkpoint import file_sha256
from segship.training.networks.sizes import symbolic_sizes

SIZE = (24, 40)
NETS = textwrap.dedent(
    '''
    """Networks of somebody else."""
    import torch
    from torch import nn

    from parts import stem  # lies beside this file


    class Net(nn.Module):
        def __init__(self, classes=3, stride=1, change="", channels=3):
            super().__init__()
            self.stem = stem(channels, stride)
            self.head = nn.Conv2d(4, classes, 1)
            self.change = change

        def forward(self, image):
            logits = 5 * self.head(self.stem(image).relu())
            return eval(self.change) if self.change else logits


    class Needs(Net):
        def __init__(self, depth):
            super().__init__()


    class Shell(nn.Module):  # whose weights have names with the prefix of a wrapped network
        def __init__(self):
            super().__init__()
            self.module = Net()

        def forward(self, image):
            return self.module(image)


    class Lazy(Net):
        def __init__(self):
            super().__init__()
            self.extra = nn.LazyConv2d(3, 1)


    def make(classes=3, **values):
        print("building")
        return Net(classes, **values)


    def broken():
        raise KeyError("no such width")


    def number():
        return 3


    ready = Net()
    '''
)


@pytest.fixture
def nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A folder that is the current one, with somebody's ``nets.py``; returns that file's name."""
    (tmp_path / "nets.py").write_text(NETS)
    (tmp_path / "parts.py").write_text(
        "from torch import nn\n\n\ndef stem(channels, stride):\n    return nn.Conv2d(channels, 4, 3, stride, 1)\n"
    )
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    for module in ("nets", "parts"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    return "nets.py"


def _card(classes: int = 3, **values: Any) -> ModelCard:
    names = ",".join(f"class {number}" for number in range(classes))
    return foreign_card(**{"class_names": names, "size": SIZE, "mean": "imagenet", **values})


def _run(network: nn.Module, channels: int = 3) -> Tensor:
    with torch.inference_mode():
        outputs = network(torch.ones(1, channels, *SIZE))
    assert isinstance(outputs, tuple)
    first = outputs[0]
    assert isinstance(first, Tensor)
    return first


@pytest.mark.parametrize("target", ["nets.py:Net", "nets:Net", "./nets.py:make", "nets:make", "nets.py:ready"])
def test_a_class_a_function_or_a_network_of_a_file_or_a_module_is_built(nets: str, target: str) -> None:
    network, card = load_foreign(target, None, _card())
    assert _run(network).shape == (1, 3, *SIZE)
    assert not any(module.training for module in network.modules())
    assert (card.network, card.provenance.dataset, card.provenance.checkpoint_sha256) == (None, "", "")
    assert card.provenance.versions["torch"] == torch.__version__


def test_what_it_prints_does_not_mix_with_results(nets: str, capsys: pytest.CaptureFixture[str]) -> None:
    load_foreign("nets.py:make", None, _card())
    assert capsys.readouterr() == ("", "building\n")


def test_values_in_brackets_are_handed_on(nets: str) -> None:
    network, _ = load_foreign("nets.py:make(classes=7, channels=1)", None, _card(7, mean="0.5", std="0.25"))
    assert _run(network, channels=1).shape == (1, 7, *SIZE)


@pytest.mark.parametrize("values", ["(classes=open('x'))", "(3)", "(**{'classes': 3})", "(classes=)", "()()"])
def test_nothing_in_the_brackets_is_evaluated(nets: str, values: str) -> None:
    with pytest.raises(ExportError, match=r"expected names and plain values in the brackets"):
        load_foreign(f"nets.py:make{values}", None, _card())


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("nets.py", "expected package.module:callable or path/to/file.py:callable"),
        ("missing.py:Net", "missing.py is not there"),
        ("no.such.module:Net", "no module is called no.such.module"),
        ("nets.py:Nett", "nets.py has no Nett; it has Net, Needs, Shell, Lazy and 4 more"),
        ("nets.py:make.inner", "nets.py has no make.inner"),
        ("nets.py:number", "returned an object of the type int; expected a torch.nn.Module"),
        ("nets.py:Needs", r"calling nets.py:Needs raised TypeError: .*'depth'"),
        ("nets.py:broken", r"raised KeyError: 'no such width' \(.*nets.py, line \d+\)"),
        ("nets.py:Lazy", "has lazy modules"),
        ("ends.py:Net", r"importing ends.py raised SystemExit: 2 \(.*ends.py, line 2\)"),
        ("typo.py:Net", r"importing typo.py raised SyntaxError"),
        ("needs.py:Net", r"importing needs.py raised ModuleNotFoundError: No module named 'no_such_package'"),
        ("needs:Net", r"importing needs raised ModuleNotFoundError: No module named 'no_such_package'"),
    ],
)
def test_what_cannot_be_built_is_one_line_that_says_why(nets: str, target: str, words: str) -> None:
    Path("ends.py").write_text("import sys\nsys.exit(2)\n")
    Path("typo.py").write_text("def make(:\n")
    Path("needs.py").write_text("import no_such_package\n")
    with pytest.raises(ExportError, match=words) as caught:
        load_foreign(target, None, _card())
    assert "\n" not in str(caught.value)


def test_the_road_of_imports_is_as_it_was(nets: str) -> None:
    before = list(sys.path)
    load_foreign("nets.py:Net", None, _card())
    with pytest.raises(ExportError):
        load_foreign("nets.py:broken", None, _card())
    assert sys.path == before


def test_a_target_is_told_from_a_checkpoint() -> None:
    assert all(map(is_target, ["nets.py:make", "a.b:C", r"C:\nets.py:make", "n.py:make(a={'b': 'c:d'})"]))
    assert not any(map(is_target, ["runs/best.safetensors", r"C:\runs\best.safetensors", "nets.py", "nets.py:"]))


class _Returning(nn.Module):
    """Returns its logits in a way of its own."""

    def __init__(self, returned: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.returned = returned

    def forward(self, image: Tensor) -> object:
        return self.returned(image)


@pytest.mark.parametrize(
    "returned",
    [
        lambda x: x,
        lambda x: (x, x + 1),
        lambda x: [x, x + 1],
        lambda x: OrderedDict(aux=x + 1, out=x),
        lambda x: {"loss": x + 1, "logits": x},
        lambda x: {"semantic": x},
        lambda x: SimpleNamespace(logits=x, hidden_states=()),
    ],
    ids=["tensor", "tuple", "list", "out", "logits", "only one", "attribute"],
)
def test_the_main_logits_are_found_however_they_are_returned(returned: Callable[[Tensor], object]) -> None:
    image = torch.randn(2, 3, *SIZE)
    network = ForeignNetwork(_Returning(returned))
    outputs = network(image)
    assert len(outputs) == 1
    assert torch.equal(outputs[0], image)


@pytest.mark.parametrize("returned", [lambda x: {"a": x, "b": x}, lambda x: (), lambda x: {}, lambda x: 3])
def test_a_network_without_logits_is_an_error(returned: Callable[[Tensor], object]) -> None:
    with pytest.raises(ExportError, match="expected logits: a tensor, the first of a tuple"):
        ForeignNetwork(_Returning(returned))(torch.zeros(1, 3, *SIZE))


@pytest.mark.parametrize("is_open", [False, True])
def test_small_logits_are_brought_to_the_pictures_size(is_open: bool) -> None:
    image = torch.randn(1, 3, 23, 37)
    small = F.avg_pool2d(image, 4, ceil_mode=True)
    network = ForeignNetwork(_Returning(lambda x: F.avg_pool2d(x, 4, ceil_mode=True)))
    if is_open:
        with symbolic_sizes():
            (logits,) = network(image)
    else:
        (logits,) = network(image)
    assert torch.equal(logits, F.interpolate(small, size=(23, 37), mode="bilinear", align_corners=False))


@pytest.mark.parametrize("stride", [2, 4, 16, 24])
def test_logits_of_any_stride_are_taken(nets: str, stride: int) -> None:
    network, _ = load_foreign(f"nets.py:Net(stride={stride})", None, _card())
    assert _run(network).shape == (1, 3, *SIZE)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("logits.argmax(1)", r"returned \(1, 24, 40\) int64 for a picture \(1, 3, 24, 40\); expected logits \(1, 3, h"),
        ("logits.argmax(1, keepdim=True)", r"returned \(1, 1, 24, 40\) int64"),
        ("logits.double()", r"returned \(1, 3, 24, 40\) float64"),
        ("logits[0]", r"returned \(3, 24, 40\) float32"),
        ("logits[:, :2]", r"returned \(1, 2, 24, 40\) .* one for each of 3 classes: give as many class names"),
        ("logits[..., 2:-2, 2:-2]", r"returned \(1, 3, 20, 36\) .* a whole share of it"),
        ("torch.cat([logits, logits], 2)", r"returned \(1, 3, 48, 40\) .* a whole share of it"),
        ("logits / 0", "NaN or infinite"),
        ("logits.softmax(1)", "as probabilities are; expected logits: leave out its last softmax or sigmoid"),
        ("torch.cat([logits, 1], 1)", r"running nets.py:Net.* on a picture \(1, 3, 24, 40\) raised TypeError"),
    ],
)
def test_what_are_no_logits_for_the_classes_is_refused(nets: str, change: str, words: str) -> None:
    with pytest.raises(ExportError, match=words):
        load_foreign(f"nets.py:Net(change={change!r})", None, _card())


def test_another_number_of_channels_is_refused_with_what_was_tried(nets: str) -> None:
    with pytest.raises(ExportError, match=r"on a picture \(1, 1, 24, 40\) raised RuntimeError"):
        load_foreign("nets.py:Net", None, _card(mean="0.5", std="0.25"))


def test_a_single_logit_for_two_classes_makes_a_binary_network(nets: str) -> None:
    _, card = load_foreign("nets.py:Net(classes=1)", None, _card(2))
    assert (card.task, card.num_logits, card.threshold) == ("binary", 1, 0.5)
    _, card = load_foreign("nets.py:Net(classes=2)", None, _card(2))
    assert (card.task, card.num_logits) == ("multiclass", 2)


def test_a_sigmoid_is_not_taken_for_a_logit(nets: str) -> None:
    with pytest.raises(ExportError, match="as probabilities are"):
        load_foreign("nets.py:Net(classes=1, change='logits.sigmoid()')", None, _card(2))


def _theirs(nets: str, target: str = "nets.py:Net") -> tuple[nn.Module, dict[str, Tensor]]:
    """A network other than the one that will be built, and its weights."""
    torch.manual_seed(5)
    theirs, _ = load_foreign(target, None, _card())
    return theirs, {name.removeprefix("module."): tensor for name, tensor in theirs.state_dict().items()}


@pytest.mark.parametrize(
    "wrap",
    [lambda state: state, lambda state: {"state_dict": {f"module.{name}": t for name, t in state.items()}, "epoch": 3}],
    ids=["bare", "wrapped"],
)
@pytest.mark.parametrize("target", ["nets.py:Net", "nets.py:Shell"])
def test_weights_come_from_a_file_that_torch_saved(nets: str, target: str, wrap: Callable[[Any], Any]) -> None:
    theirs, state = _theirs(nets, target)
    torch.save(wrap(state), "net.pth")
    network, card = load_foreign(target, Path("net.pth"), _card())
    assert torch.equal(_run(network), _run(theirs))
    assert card.provenance.checkpoint_sha256 == file_sha256(Path("net.pth"))


def test_weights_come_from_a_safetensors_file(nets: str) -> None:
    theirs, state = _theirs(nets)
    save_file(state, "net.safetensors")
    network, _ = load_foreign("nets.py:Net", Path("net.safetensors"), _card())
    assert torch.equal(_run(network), _run(theirs))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: state.pop("head.bias"), "the file lacks head.bias"),
        (lambda state: state.update(extra=torch.ones(2)), "only the file has extra"),
        (lambda state: state.update({"head.bias": torch.ones(9)}), r"head.bias \(file 9, network 3\)"),
        (lambda state: state["head.bias"].fill_(torch.nan), "head.bias has values that are no numbers"),
    ],
)
def test_weights_of_another_network_are_refused_by_name(
    nets: str, change: Callable[[dict[str, Tensor]], object], words: str
) -> None:
    _, state = _theirs(nets)
    change(state)
    torch.save(state, "net.pth")
    with pytest.raises(CheckpointError, match=words):
        load_foreign("nets.py:Net", Path("net.pth"), _card())


def test_counters_of_batch_norms_may_be_missing(nets: str) -> None:
    Path("norm.py").write_text("from torch import nn\n\n\ndef make():\n    return nn.BatchNorm2d(3)\n")
    state = {name: torch.full((3,), 0.5) for name in ("weight", "bias", "running_mean", "running_var")}
    torch.save(state, "norm.pth")
    network, _ = load_foreign("norm.py:make", Path("norm.pth"), _card())
    assert torch.allclose(_run(network), torch.full((1, 3, *SIZE), 0.5 * 0.5 / 0.5**0.5 + 0.5), atol=1e-4)


class _Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("ran"),)


def test_no_code_in_a_weights_file_runs(nets: str) -> None:
    torch.save({"head.bias": _Evil()}, "net.pth")
    with pytest.raises(CheckpointError, match="no code is run from a file"):
        load_foreign("nets.py:Net", Path("net.pth"), _card())
    assert not Path("ran").exists()


def test_a_card_is_made_of_a_few_values() -> None:
    card = foreign_card(class_names="sky,road", size=(24, 40), mean="0.1,0.2,0.3", std="0.4,0.5,0.6")
    form = card.preprocess
    assert card.class_names == ("sky", "road")
    assert (form.size, form.mean, form.std) == ((24, 40), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert (form.channels, form.color_order, form.scale, form.depth) == (3, "RGB", "full_scale", "uint8")
    assert (card.head, card.input_name, card.output_name, card.network) == ("logits", "image", "logits", None)
    assert len(set(card.palette)) == 2


def test_the_means_of_imagenet_can_be_asked_for_by_name() -> None:
    form = _card().preprocess
    assert (form.mean, form.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    form = _card(std="1,1,1").preprocess
    assert (form.mean, form.std) == ((0.485, 0.456, 0.406), (1.0, 1.0, 1.0))


def test_single_numbers_make_a_grey_network() -> None:
    form = _card(mean="0.5", std="0.25").preprocess
    assert (form.channels, form.color_order, form.mean) == (1, "grey", (0.5,))


def test_all_values_that_are_missing_are_named_at_once() -> None:
    with pytest.raises(CardError, match="--class-names, --size, --mean, --std; or a whole card: --card"):
        foreign_card()
    with pytest.raises(CardError, match="give --size, --std; or"):
        foreign_card(class_names="a,b", mean="0,0,0")


def test_a_card_file_says_what_the_network_is_and_nothing_of_another_graph(tmp_path: Path) -> None:
    card = _card()
    form = dataclasses.replace(card.preprocess, color_order="BGR", scale="image_max")
    other = dataclasses.replace(
        card,
        preprocess=form,
        tile_overlap=None,
        stride=8,
        head="labels",
        output_name="mask",
        input_form="pixels",
        dynamic=("batch",),
        precision="int8",
    )
    path = tmp_path / "card.json"
    path.write_text(other.to_json())
    assert foreign_card(card_path=path) == dataclasses.replace(card, preprocess=form, stride=8)
    assert foreign_card(card_path=path, size=(48, 80)).preprocess.size == (48, 80)
    with pytest.raises(CardError, match="--card holds a whole card"):
        foreign_card(card_path=path, mean="imagenet")
