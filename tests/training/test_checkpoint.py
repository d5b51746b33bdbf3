import dataclasses
import hashlib
import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from segship.runtime.card import CARD_KEY, ModelCard, Network
from segship.runtime.errors import CardError, CheckpointError, OutputError
from segship.runtime.model_file import read_card
from segship.training.checkpoint import file_sha256, load_checkpoint, save_checkpoint
from segship.training.optimisation import OptimizerConfig, WeightAverage, build_optimizer
from segship.training.state import save_state


def _with_card(checkpoint: Path, to: Path, **changes: object) -> Path:
    """Copy a checkpoint and change its card."""
    card = dataclasses.replace(read_card(checkpoint), **changes)  # type: ignore[arg-type]
    save_file(load_file(checkpoint), to, metadata={CARD_KEY: card.to_json()})
    return to


def test_what_was_saved_is_loaded_weights_and_card(tiny_checkpoint: Path, tmp_path: Path) -> None:
    network, card = load_checkpoint(tiny_checkpoint)
    again = tmp_path / "new folder" / "again.safetensors"
    save_checkpoint(again, network, card)
    network_again, card_again = load_checkpoint(again)
    expected, found = network.state_dict(), network_again.state_dict()
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name
    assert any(tensor.abs().sum() > 0 for tensor in expected.values())
    assert _without_hash(card_again) == _without_hash(card) == read_card(tiny_checkpoint)
    assert [path.name for path in again.parent.iterdir()] == ["again.safetensors"]


def test_the_network_comes_in_evaluation_mode_on_the_cpu(tiny_checkpoint: Path) -> None:
    network, _ = load_checkpoint(tiny_checkpoint)
    assert not any(module.training for module in network.modules())
    assert {tensor.device.type for tensor in network.state_dict().values()} == {"cpu"}


def test_a_network_in_channels_last_is_saved_as_it_is(tiny_checkpoint: Path, tmp_path: Path) -> None:
    network, card = load_checkpoint(tiny_checkpoint)
    expected = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    save_checkpoint(tmp_path / "last.safetensors", network.to(memory_format=torch.channels_last), card)
    for name, tensor in load_checkpoint(tmp_path / "last.safetensors")[0].state_dict().items():
        assert torch.equal(tensor, expected[name]), name


def test_the_card_gets_the_hash_of_the_file(tiny_checkpoint: Path) -> None:
    expected = hashlib.sha256(tiny_checkpoint.read_bytes()).hexdigest()
    assert file_sha256(tiny_checkpoint) == expected
    assert load_checkpoint(tiny_checkpoint)[1].provenance.checkpoint_sha256 == expected
    assert read_card(tiny_checkpoint).provenance.checkpoint_sha256 == ""


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_of_a_runs_state_the_network_is_loaded_that_would_be_deployed(
    tiny_checkpoint: Path, tmp_path: Path, ema: float
) -> None:
    network, card = load_checkpoint(tiny_checkpoint)
    average = WeightAverage(network, ema) if ema else None
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.25
    deployed = network
    if average is not None:
        average.update(network, 5)
        deployed = average.network
    path = tmp_path / "last/step_000000005.safetensors"
    save_state(path, network, build_optimizer(OptimizerConfig(), network), average, card, {})
    found, found_card = load_checkpoint(path)
    for name, tensor in deployed.state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor), name
    assert not any(module.training for module in found.modules())
    assert _without_hash(found_card) == _without_hash(card)
    assert found_card.provenance.checkpoint_sha256 == file_sha256(path)


def test_on_a_full_disk_the_old_checkpoint_stays_and_nothing_else_is_left(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    network, card = load_checkpoint(tiny_checkpoint)
    path = tmp_path / "best.safetensors"
    before = tiny_checkpoint.read_bytes()
    path.write_bytes(before)
    resource = pytest.importorskip("resource", reason="limits of a process are POSIX")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limits[1]))  # writing more fails, as on a full disk
    try:
        with pytest.raises(OutputError, match=rf"cannot write {path}: .*too large"):
            save_checkpoint(path, network, card)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("share", [0, 0.001, 0.02, 0.5, 0.999])
def test_a_truncated_file_is_refused(tiny_checkpoint: Path, tmp_path: Path, share: float) -> None:
    whole = tiny_checkpoint.read_bytes()
    path = tmp_path / "cut.safetensors"
    path.write_bytes(whole[: int(share * len(whole))])
    _refuses(path, r"cut\.safetensors cannot be read as a checkpoint")


def test_a_text_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "notes.safetensors"
    path.write_text("These are my weights.\n" * 100)
    _refuses(path, r"notes\.safetensors cannot be read as a checkpoint.*no safetensors file")


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    _refuses(tmp_path / "none.safetensors", r"none\.safetensors.*No such file")
    (tmp_path / "folder.safetensors").mkdir()
    _refuses(tmp_path / "folder.safetensors", "cannot be read as a checkpoint")


@pytest.mark.parametrize("name", ["best.pt", "model.onnx", "best"])
def test_another_kind_of_file_is_refused_saying_what_is_expected(tmp_path: Path, name: str) -> None:
    _refuses(tmp_path / name, rf"{name} is no checkpoint of seg-train; expected a \.safetensors file")


def test_a_file_without_a_card_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bare.safetensors"
    save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(CardError, match=r"bare\.safetensors carries no segship card"):
        load_checkpoint(path)


def test_a_card_that_names_no_network_is_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    path = _with_card(tiny_checkpoint, tmp_path / "foreign.safetensors", network=None)
    _refuses(path, "its card names no network, so it cannot be built")


@pytest.mark.parametrize(
    "network", [Network("unet", {"base_channels": 5}), Network("u2netp")], ids=["another width", "another network"]
)
def test_weights_that_do_not_fit_are_refused_in_one_line(
    tiny_checkpoint: Path, tmp_path: Path, network: Network
) -> None:
    path = _with_card(tiny_checkpoint, tmp_path / "other.safetensors", network=network)
    _refuses(path, rf"other\.safetensors: its weights do not fit {network.arch}")


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_weights_of_another_type_are_refused(tiny_checkpoint: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = load_file(tiny_checkpoint)
    name = next(name for name in tensors if name.endswith("weight"))
    path = tmp_path / "half.safetensors"
    card = read_card(tiny_checkpoint)
    save_file(tensors | {name: tensors[name].to(dtype)}, path, metadata={CARD_KEY: card.to_json()})
    _refuses(path, rf"half\.safetensors: {name} is of the type {dtype}; expected torch\.float32")


@pytest.mark.parametrize(
    ("base_channels", "words"),
    [
        (100_000, "its weights do not fit unet"),  # 96 TB; where they were allocated, that would fail first
        (10**9, "'unet' cannot be built with"),
        (10**30, "'unet' cannot be built with"),
        (-1, "'unet' cannot be built with"),
    ],
)
def test_a_card_that_claims_a_monstrous_network_allocates_nothing(
    tiny_checkpoint: Path, tmp_path: Path, base_channels: int, words: str
) -> None:
    network = Network("unet", {"base_channels": base_channels})
    path = _with_card(tiny_checkpoint, tmp_path / "huge.safetensors", network=network)
    _refuses(path, words)


def test_a_pickle_that_is_called_a_checkpoint_runs_no_code(tmp_path: Path) -> None:
    harm = tmp_path / "harm"
    path = tmp_path / "best.safetensors"
    path.write_bytes(pickle.dumps(_Harmful(str(harm))))
    _refuses(path, "cannot be read as a checkpoint")
    torch.save({"weight": _Harmful(str(harm))}, path)
    _refuses(path, "cannot be read as a checkpoint")
    assert not harm.exists()
    pickle.loads(pickle.dumps(_Harmful(str(harm))))
    assert harm.exists(), "the pickle should do harm when it is unpickled"


class _Harmful:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (self.path,)


def _refuses(path: Path, words: str) -> None:
    with pytest.raises(CheckpointError, match=words) as caught:
        load_checkpoint(path)
    assert "\n" not in str(caught.value)


def _without_hash(card: ModelCard) -> ModelCard:
    return dataclasses.replace(card, provenance=dataclasses.replace(card.provenance, checkpoint_sha256=""))
