import io
import os
import pickle
import re
import struct
import tarfile
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from segship.runtime.errors import CheckpointError
from segship.training.checkpoint import load_checkpoint
from segship.training.initialise import initialise
from segship.training.networks.fcn import FCN8s
from segship.training.networks.u2net import U2NetP
from segship.training.networks.unet import UNet

CLASSES = 6


def _network(num_classes: int = CLASSES, in_channels: int = 3, seed: int = 1) -> UNet:
    torch.manual_seed(seed)
    return UNet(num_classes, in_channels, base_channels=4)


def _copy(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def _equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_checkpoint_of_segship_gives_all_its_weights(tiny_checkpoint: Path) -> None:
    network = _network()
    report = initialise(network, tiny_checkpoint)
    theirs, _ = load_checkpoint(tiny_checkpoint)
    assert _equal(_copy(network), _copy(theirs))
    assert set(report.loaded) == set(network.state_dict())
    assert (report.misfits, report.missing, report.unused) == ((), (), ())
    assert str(report) == f"loaded {len(report.loaded)} of {len(report.loaded)} tensors"


def test_a_safetensors_file_needs_no_card(tmp_path: Path) -> None:
    theirs = _network(seed=2)
    save_file(theirs.state_dict(), tmp_path / "bare.safetensors")
    network = _network()
    initialise(network, tmp_path / "bare.safetensors")
    assert _equal(_copy(network), _copy(theirs))


@pytest.mark.parametrize("new_format", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": state, "optimizer": {"lr": 0.1}},
        lambda state: {"epoch": 3, "model_state_dict": state},
        lambda state: {"module." + name: tensor for name, tensor in state.items()},
        lambda state: {"state_dict": {"module._orig_mod." + name: tensor for name, tensor in state.items()}},
        lambda state: {"module." + name: nn.Parameter(t) if t.is_floating_point() else t for name, t in state.items()},
        lambda state: {**state, "epoch": 3, "best": 0.5, "names": ["a"]},
    ],
    ids=["bare", "state_dict", "model", "model_state_dict", "module", "compiled", "parameters", "other values"],
)
def test_a_state_dict_of_torch_is_found_however_it_is_wrapped(
    tmp_path: Path, wrap: Callable[[dict[str, Tensor]], object], new_format: bool
) -> None:
    theirs = _network(seed=2)
    torch.save(wrap(theirs.state_dict()), tmp_path / "theirs.pth", _use_new_zipfile_serialization=new_format)
    network = _network()
    report = initialise(network, tmp_path / "theirs.pth")
    assert _equal(_copy(network), _copy(theirs))
    assert report.unused == ()


def test_a_state_of_a_run_gives_the_averaged_weights_where_it_has_them(tmp_path: Path) -> None:
    raw, average = _network(seed=2), _network(seed=3)
    state = {f"network.{name}": tensor for name, tensor in raw.state_dict().items()}
    save_file(state, tmp_path / "raw.safetensors")
    save_file(
        state | {f"average.{name}": tensor for name, tensor in average.state_dict().items()},
        tmp_path / "both.safetensors",
    )
    for file, expected in (("raw", raw), ("both", average)):
        network = _network()
        initialise(network, tmp_path / f"{file}.safetensors")
        assert _equal(_copy(network), _copy(expected))


@pytest.mark.parametrize("name", ["module", "_orig_mod", "network", "average"])
@pytest.mark.parametrize("wrapper", ["", "module."])
def test_a_network_whose_names_begin_like_a_wrappers_keeps_them(tmp_path: Path, name: str, wrapper: str) -> None:
    theirs, network = (nn.Sequential(OrderedDict({name: _network(seed=seed)})) for seed in (2, 1))
    save_file({wrapper + key: tensor for key, tensor in theirs.state_dict().items()}, tmp_path / "their.safetensors")
    initialise(network, tmp_path / "their.safetensors")
    assert _equal(_copy(network), _copy(theirs))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_floats_of_any_precision_become_those_of_the_network(tmp_path: Path, dtype: torch.dtype) -> None:
    theirs = _network(seed=2)
    torch.save(_network(seed=2).to(dtype).state_dict(), tmp_path / "theirs.pth")
    network = _network()
    report = initialise(network, tmp_path / "theirs.pth")
    assert report.misfits == ()
    assert all(tensor.dtype in (torch.float32, torch.int64) for tensor in network.state_dict().values())
    torch.testing.assert_close(_copy(network), _copy(theirs), rtol=0.01, atol=1e-6)


def test_a_head_of_other_classes_and_a_stem_of_other_channels_start_fresh(tmp_path: Path) -> None:
    theirs = _network(num_classes=2, seed=2)
    torch.save(theirs.state_dict(), tmp_path / "theirs.pth")
    network = _network(in_channels=1)
    before = _copy(network)
    report = initialise(network, tmp_path / "theirs.pth")
    fresh = [misfit.name for misfit in report.misfits]
    assert fresh[0] == "down1.0.weight"
    assert all(name.startswith("head.") for name in fresh[1:])
    assert (report.missing, report.unused) == ((), ())
    assert set(report.loaded) | set(fresh) == set(before)
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name] if name in fresh else theirs.state_dict()[name]), name
    assert str(report).startswith(
        f"loaded {len(report.loaded)} of {len(before)} tensors; "
        "fresh: down1.0.weight (file 4×3×3×3, network 4×1×3×3), head.0.weight (file 2×4×3×3, network 6×4×3×3), "
    )
    assert str(report).endswith(f" and {len(fresh) - 4} more")


def test_weights_of_u2net_for_one_class_serve_for_many(tmp_path: Path) -> None:
    torch.manual_seed(2)
    theirs = U2NetP(1)
    torch.save(OrderedDict(theirs.state_dict()), tmp_path / "u2netp.pth")
    network = U2NetP(11)
    report = initialise(network, tmp_path / "u2netp.pth")
    heads = {
        f"{layer}.{kind}" for layer in [*(f"side{n}" for n in range(1, 7)), "outconv"] for kind in ("weight", "bias")
    }
    assert {misfit.name for misfit in report.misfits} == heads
    assert "outconv.weight (file 1×6×1×1, network 11×66×1×1)" in map(str, report.misfits)
    body = "stage1.rebnconvin.conv_s1.weight"
    assert torch.equal(network.state_dict()[body], theirs.state_dict()[body])


def test_the_weights_that_torchvision_has_of_vgg_become_the_encoder(tmp_path: Path) -> None:
    torch.manual_seed(2)
    network = FCN8s(CLASSES, backbone="vgg11")
    features = {name: torch.rand_like(t) for name, t in network.state_dict().items() if name.startswith("features.")}
    others = {f"classifier.{layer}.{kind}": torch.zeros(3) for layer in (0, 3, 6) for kind in ("weight", "bias")}
    torch.save(features | others, tmp_path / "vgg11-8a719046.pth")
    report = initialise(network, tmp_path / "vgg11-8a719046.pth")
    assert set(report.loaded) == set(features)
    assert report.unused == tuple(others)
    assert {name.partition(".")[0] for name in report.missing} == {"up1", "up2", "up3", "up4", "up5", "classifier"}
    assert all(torch.equal(network.state_dict()[name], tensor) for name, tensor in features.items())
    first, second, third = str(report).splitlines()
    assert first == f"loaded 16 of {16 + len(report.missing)} tensors"
    assert second.startswith("fresh, since not in the file: up1.up.weight, up1.up.bias, ")
    assert re.fullmatch(r"only in the file: (classifier\.\d\.\w+, ){3}classifier\.3\.bias and 2 more", third)


def test_integers_do_not_pass_for_floats_of_that_shape(tmp_path: Path) -> None:
    state = _network(seed=2).state_dict()
    state["down1.0.bias"] = torch.zeros(4, dtype=torch.int8)
    torch.save(state, tmp_path / "theirs.pth")
    report = initialise(_network(), tmp_path / "theirs.pth")
    assert [str(misfit) for misfit in report.misfits] == ["down1.0.bias (file 4 int8, network 4)"]


def test_a_file_none_of_which_fits_is_an_error_with_names_of_both(tmp_path: Path) -> None:
    torch.save({"conv1.weight": torch.zeros(2), "down1.0.weight": torch.zeros(7)}, tmp_path / "theirs.pth")
    _refused(
        tmp_path / "theirs.pth",
        "none of its weights has name and shape .* it has conv1.weight, down1.0.weight; the network has down1",
    )


def test_counters_alone_are_no_weights_that_fit(tmp_path: Path) -> None:
    state = {name: t for name, t in _network().state_dict().items() if name.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "theirs.pth")
    _refused(tmp_path / "theirs.pth", "none of its weights has name and shape")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e300])
def test_weights_that_are_no_numbers_are_refused_by_name_and_nothing_is_loaded(tmp_path: Path, value: float) -> None:
    state = {name: t.double() if t.is_floating_point() else t for name, t in _network(seed=2).state_dict().items()}
    state["up2.up.bias"][3] = value
    torch.save(state, tmp_path / "theirs.pth")
    _refused(tmp_path / "theirs.pth", r"its tensor up2\.up\.bias has values that are no numbers")


def test_weights_that_are_not_used_may_be_anything(tmp_path: Path) -> None:
    state = _network(seed=2).state_dict()
    state["other"] = torch.full((3,), float("nan"))
    state["head.0.bias"] = torch.full((9,), float("nan"))
    torch.save(state, tmp_path / "theirs.pth")
    report = initialise(_network(), tmp_path / "theirs.pth")
    assert report.unused == ("other",)


class _Touch:
    """Unpickled in earnest, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("form", ["zip", "legacy", "bare pickle", "tar"])
def test_no_code_in_a_file_runs(tmp_path: Path, form: str) -> None:
    trace, path = tmp_path / "trace", tmp_path / "malicious.pth"
    content = {"state_dict": _network().state_dict(), "more": _Touch(trace)}
    if form == "bare pickle":
        path.write_bytes(pickle.dumps(_Touch(trace), protocol=2))
    elif form == "tar":
        with tarfile.open(path, "w") as archive:
            for name in ("storages", "tensors", "pickle"):
                data = pickle.dumps(_Touch(trace), protocol=2)
                member = tarfile.TarInfo(name)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    message = _refused(path, "can hold code" if form == "tar" else "it asks for (posix|nt).mkdir, and no code is run")
    assert not trace.exists()
    assert "weights_only" not in message, "no advice to read it unsafely"
    if form == "bare pickle":
        pickle.loads(path.read_bytes())
        assert trace.exists(), "it would have"


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_a_pickle_of_any_protocol_is_one_error_without_warnings(tmp_path: Path, protocol: int) -> None:
    (tmp_path / "odd.pth").write_bytes(pickle.dumps(_Touch(tmp_path / "trace"), protocol=protocol))
    _refused(tmp_path / "odd.pth", "cannot be read as weights")
    assert not (tmp_path / "trace").exists()


def test_a_whole_network_and_arrays_are_refused_naming_what_they_ask_for(tmp_path: Path) -> None:
    torch.save(nn.Conv2d(1, 1, 1), tmp_path / "network.pth")
    _refused(tmp_path / "network.pth", r"it asks for torch\.nn\.modules\.conv\.Conv2d.*expected .*state_dict\(\)")
    torch.save({"weight": np.zeros(3)}, tmp_path / "arrays.pth")
    _refused(tmp_path / "arrays.pth", "it asks for numpy")


@pytest.mark.parametrize("new_format", [True, False], ids=["zip", "legacy"])
def test_a_file_that_was_cut_short_is_refused_wherever_the_cut_is(tmp_path: Path, new_format: bool) -> None:
    torch.save({"down1.0.bias": torch.rand(4)}, tmp_path / "whole.pth", _use_new_zipfile_serialization=new_format)
    whole = (tmp_path / "whole.pth").read_bytes()
    for length in range(0, len(whole), max(1, len(whole) // 40)):
        (tmp_path / "cut.pth").write_bytes(whole[:length])
        _refused(tmp_path / "cut.pth", "cannot be read as weights", _Tiny())


def test_a_file_of_letters_is_said_to_be_damaged(tmp_path: Path) -> None:
    (tmp_path / "letters.pth").write_bytes(b"hello" * 100)
    _refused(tmp_path / "letters.pth", r"cannot be read as weights \(it is damaged, or holds more than tensors\)")


class _Tiny(nn.Module):
    """A network of four numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.down1 = nn.ModuleList([nn.Conv2d(1, 4, 1)])


@pytest.mark.parametrize("new_format", [True, False], ids=["zip", "legacy"])
def test_a_file_with_damaged_bytes_is_read_or_is_one_error(tmp_path: Path, new_format: bool) -> None:
    torch.save({"down1.0.bias": torch.rand(4)}, tmp_path / "whole.pth", _use_new_zipfile_serialization=new_format)
    whole = np.frombuffer((tmp_path / "whole.pth").read_bytes(), np.uint8)
    rng = np.random.default_rng(3)
    refused = 0
    for _ in range(100):
        damaged = whole.copy()
        damaged[rng.integers(0, len(whole), 3)] = rng.integers(0, 256, 3, np.uint8)
        (tmp_path / "damaged.pth").write_bytes(damaged.tobytes())
        try:
            initialise(_Tiny(), tmp_path / "damaged.pth")
        except CheckpointError:
            refused += 1
    assert refused > 20


def test_a_cut_safetensors_file_is_refused(tmp_path: Path, tiny_checkpoint: Path) -> None:
    whole = tiny_checkpoint.read_bytes()
    for length in (0, 4, 100, len(whole) // 2, len(whole) - 1):
        (tmp_path / "cut.safetensors").write_bytes(whole[:length])
        _refused(tmp_path / "cut.safetensors", "cannot be read as weights")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(
    "content",
    [
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 99\n",
        b"<!DOCTYPE html><html>404</html>",
        b"\x80\x02}",
        b"PK\x03\x04" + b"\0" * 100,
        np.random.default_rng(0).bytes(3000),
    ],
    ids=["pointer", "page", "pickle's beginning", "zip's beginning", "noise"],
)
def test_what_are_no_weights_is_one_error(tmp_path: Path, content: bytes, suffix: str) -> None:
    path = tmp_path / f"garbage{suffix}"
    path.write_bytes(content)
    _refused(path, "cannot be read as weights")


@pytest.mark.parametrize("claim", [10**6, 2**31 - 1])
def test_a_tensor_that_claims_more_than_the_file_holds_is_refused(tmp_path: Path, claim: int) -> None:
    path = tmp_path / "small.pth"
    torch.save({"down1.0.bias": torch.rand(7)}, path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(tmp_path / "huge.pth", "w") as archive:
        for name, data in members.items():
            archive.writestr(
                name, data.replace(b"K\x07", b"J" + struct.pack("<i", claim)) if "data.pkl" in name else data
            )
    _refused(tmp_path / "huge.pth", "cannot be read as weights")
    header = b'{"down1.0.bias":{"dtype":"F32","shape":[%d],"data_offsets":[0,%d]}}' % (claim, 4 * claim)
    (tmp_path / "huge.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 28)
    _refused(tmp_path / "huge.safetensors", "cannot be read as weights")
    (tmp_path / "header.safetensors").write_bytes(struct.pack("<Q", 2**62) + header)
    _refused(tmp_path / "header.safetensors", "cannot be read as weights")


def test_a_tensor_that_repeats_one_number_without_end_costs_nothing(tmp_path: Path) -> None:
    torch.save(
        {"down1.0.bias": torch.rand(1).expand(2**50), "down1.0.weight": torch.rand(4, 1, 1, 1)}, tmp_path / "t.pth"
    )
    assert (tmp_path / "t.pth").stat().st_size < 10_000
    report = initialise(_Tiny(), tmp_path / "t.pth")
    assert [str(misfit) for misfit in report.misfits] == [f"down1.0.bias (file {2**50}, network 4)"]


def test_kinds_of_tensors_that_no_network_has_are_passed_over(tmp_path: Path) -> None:
    state: dict[str, Tensor] = dict(_network(seed=2).state_dict())
    state["down1.0.bias"] = torch.zeros(4).to_sparse()
    state["down1.1.bias"] = torch.zeros(4, device="meta")
    torch.save(state, tmp_path / "theirs.pth")
    report = initialise(_network(), tmp_path / "theirs.pth")
    assert report.missing == ("down1.0.bias", "down1.1.bias")


@pytest.mark.parametrize("content", [{}, {"epoch": 3}, [1, 2], torch.zeros(3), {"state_dict": {"a": [1.0]}}])
def test_a_file_without_tensors_by_name_is_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "empty.pth")
    _refused(tmp_path / "empty.pth", "holds no tensors by name")


def test_a_mapping_that_contains_itself_is_refused(tmp_path: Path) -> None:
    content: dict[str, Any] = {}
    content["model"] = content
    torch.save(content, tmp_path / "ring.pth")
    _refused(tmp_path / "ring.pth", "holds no tensors by name")


def test_a_file_that_is_not_there_or_a_folder_is_refused(tmp_path: Path) -> None:
    _refused(tmp_path / "nothing.pth", "nothing.pth is not there, or no file")
    _refused(tmp_path, "is not there, or no file")


def _refused(path: Path, words: str, network: nn.Module | None = None) -> str:
    """Expect one clear line, and a network that is as it was."""
    network = network or _network()
    before = _copy(network)
    with pytest.raises(CheckpointError, match=words) as caught:
        initialise(network, path)
    assert _equal(_copy(network), before)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    assert len(message) < len(str(path)) + 400
    return message
