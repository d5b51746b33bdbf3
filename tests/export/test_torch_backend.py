from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from segship.export.torch_backend import TorchBackend
from segship.runtime.backends import load_backend
from segship.runtime.errors import BackendError, CheckpointError, DeviceError, ModelError
from segship.runtime.model_file import read_card
from segship.training.checkpoint import load_checkpoint


@pytest.fixture
def backend(tiny_checkpoint: Path) -> TorchBackend:
    """The tiny network on the CPU."""
    return TorchBackend(tiny_checkpoint, read_card(tiny_checkpoint), "cpu")


@pytest.fixture
def batch() -> np.ndarray:
    """Network input (1, 3, 48, 64)."""
    return np.random.default_rng(0).standard_normal((1, 3, 48, 64)).astype(np.float32)


def test_it_runs_exactly_the_network(backend: TorchBackend, batch: np.ndarray, tiny_checkpoint: Path) -> None:
    network, _ = load_checkpoint(tiny_checkpoint)
    with torch.inference_mode():
        expected = network(torch.from_numpy(batch))[0].numpy()
    result = backend.run(batch)
    assert (result.shape, result.dtype) == ((1, 6, 48, 64), np.float32)
    np.testing.assert_array_equal(result, expected)


def test_of_several_outputs_it_returns_the_main_one(make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path / "u2netp.safetensors", arch="u2netp", size=(33, 40))
    network, card = load_checkpoint(path)
    batch = np.random.default_rng(0).standard_normal((1, 3, 33, 40)).astype(np.float32)
    with torch.inference_mode():
        fused, *sides = (output.numpy() for output in network(torch.from_numpy(batch)))
    np.testing.assert_array_equal(TorchBackend(path, card, "cpu").run(batch), fused)
    assert len(sides) == 6


def test_a_binary_network_returns_one_logit(
    make_checkpoint: Callable[..., Path], tmp_path: Path, batch: np.ndarray
) -> None:
    path = make_checkpoint(tmp_path / "binary.safetensors", threshold=0.5)
    assert TorchBackend(path, read_card(path), "cpu").run(batch).shape == (1, 1, 48, 64)


def test_a_later_run_leaves_earlier_outputs_alone(backend: TorchBackend, batch: np.ndarray) -> None:
    first = backend.run(batch)
    kept = first.copy()
    backend.run(-batch)
    np.testing.assert_array_equal(first, kept)


def test_it_is_found_by_its_name(tiny_checkpoint: Path) -> None:
    assert isinstance(load_backend("torch", tiny_checkpoint, read_card(tiny_checkpoint), "cpu"), TorchBackend)


def test_it_says_what_really_runs(backend: TorchBackend) -> None:
    info = backend.info
    assert (info.backend, info.device, info.threads) == ("torch", "cpu", torch.get_num_threads())
    assert info.engine == f"PyTorch {torch.__version__}"


def test_an_input_that_does_not_fit_is_an_error_in_one_line(backend: TorchBackend, batch: np.ndarray) -> None:
    with pytest.raises(BackendError, match=r"PyTorch failed: .*channels") as caught:
        backend.run(batch[:, :1])
    assert "\n" not in str(caught.value)


def test_a_closed_backend_says_so(backend: TorchBackend, batch: np.ndarray) -> None:
    backend.close()
    with pytest.raises(BackendError, match="closed"):
        backend.run(batch)


def test_it_refuses_a_device_that_is_not_there(tiny_checkpoint: Path) -> None:
    with pytest.raises(DeviceError, match="cuda:99 was asked for"):
        TorchBackend(tiny_checkpoint, read_card(tiny_checkpoint), "cuda:99")


def test_it_refuses_onnx_files_and_cards_of_another_head(tiny_model: Path, tiny_labels_model: Path) -> None:
    with pytest.raises(ModelError, match=r"runs checkpoints \(\.safetensors\), not .*tiny\.onnx"):
        TorchBackend(tiny_model, read_card(tiny_model), "cpu")
    with pytest.raises(ModelError, match="the card promises labels; a checkpoint returns logits"):
        TorchBackend(tiny_model.with_suffix(".safetensors"), read_card(tiny_labels_model), "cpu")


def test_it_refuses_a_damaged_checkpoint(tiny_checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "cut.safetensors"
    path.write_bytes(tiny_checkpoint.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="cannot be read as a checkpoint"):
        TorchBackend(path, read_card(path), "cpu")
