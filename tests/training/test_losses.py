import numpy as np
import pytest
import torch
from torch import Tensor

from segship.training.losses import cross_entropy

VOID = 255


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    """Logits (2, 3, 4, 5) that take gradients, and labels of which some are void, more in the first picture."""
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(2, 3, 4, 5, generator=generator).requires_grad_()
    labels = torch.randint(0, 3, (2, 4, 5), generator=generator)
    labels[0, :3] = VOID
    labels[1, 0, 0] = VOID
    return logits, labels


def _by_hand(logits: Tensor, labels: Tensor) -> float:
    z, y = logits.detach().numpy().astype(np.float64), labels.numpy()
    log_softmax = z - np.log(np.exp(z).sum(axis=1, keepdims=True))
    losses = [-log_softmax[n, y[n, h, w], h, w] for n, h, w in np.ndindex(*y.shape) if y[n, h, w] != VOID]
    return float(np.mean(losses))


def test_it_is_the_mean_over_the_valid_pixels_of_the_whole_batch(batch: tuple[Tensor, Tensor]) -> None:
    logits, labels = batch
    assert cross_entropy([logits], labels, VOID).item() == pytest.approx(_by_hand(logits, labels), rel=1e-5)


def test_void_pixels_change_neither_value_nor_gradient(batch: tuple[Tensor, Tensor]) -> None:
    logits, labels = batch
    loss = cross_entropy([logits], labels, VOID)
    loss.backward()
    void = (labels == VOID).unsqueeze(1).expand_as(logits)
    assert logits.grad is not None
    assert (logits.grad[void] == 0).all()
    assert (logits.grad[~void] != 0).all()
    elsewhere = torch.where(void, torch.full_like(logits, 77.0), logits.detach())
    assert torch.equal(cross_entropy([elsewhere], labels, VOID), loss)


def test_a_batch_of_nothing_but_void_gives_zero_with_zero_gradient(batch: tuple[Tensor, Tensor]) -> None:
    logits, labels = batch
    loss = cross_entropy([logits, logits * 2], torch.full_like(labels, VOID), VOID)
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_deep_supervision_sums_the_losses_of_all_outputs(batch: tuple[Tensor, Tensor]) -> None:
    logits, labels = batch
    outputs = [logits, logits * 0.5, -logits]
    alone = [cross_entropy([output], labels, VOID).item() for output in outputs]
    assert len({round(value, 6) for value in alone}) == 3
    assert cross_entropy(outputs, labels, VOID).item() == pytest.approx(sum(alone), rel=1e-6)


def test_bf16_logits_are_summed_in_float32(batch: tuple[Tensor, Tensor]) -> None:
    logits, labels = batch
    rounded = logits.detach().bfloat16()
    loss = cross_entropy([rounded], labels, VOID)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, cross_entropy([rounded.float()], labels, VOID))
