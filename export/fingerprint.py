"""A tensor in a few kilobytes: enough to tell whether another one holds the same values in the same order.

A tensor is cut into up to ``RUNS`` runs of neighbouring values, and of each run a weighted sum is kept. The weights
are random, of length 1 and of sum 1: what is added to every value shows as it is, and anything else by its
root mean square (the lemma of Johnson and Lindenstrauss, 1984), so that no value goes unseen, as it would in a sample.
"""

import functools
import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from segship.runtime.card import Precision

RUNS: Final = 1 << 14
TOLERANCE: Final[dict[Precision, float]] = {"fp32": 1e-5, "fp16": 1e-2, "int8": 1e-1}
"""How far one node may be off by itself, as a share of the largest value in its tensor."""

_NOISE: Final = 6.0  # between PyTorch and ONNX Runtime, a half to three of it were seen
_ABSOLUTE_TOLERANCE: Final = 1e-6
_SAME_INTEGERS: Final = 1e-3  # a run whose sum is further off holds another integer
_FLIPS: Final = 1e-4  # share of the labels that may be others: at near ties


@dataclass(frozen=True)
class Fingerprint:
    """What is kept of a tensor; its shape is not, only the order of its values.

    Attributes:
        size: number of values.
        sums: the weighted sum of each run.
        magnitude: largest absolute value, of the finite ones.
        non_finite: number of values that are NaN or infinite.
        uniform: whether all values are the same, as in padding; that two such tensors are equal says little.
        exact: whether the values are integers or truth values.
    """

    size: int
    sums: NDArray[Any]
    magnitude: float
    non_finite: int
    uniform: bool
    exact: bool

    def matches(self, expected: "Fingerprint", allowed: float) -> bool:
        """Tell whether this counts as the same tensor as ``expected``.

        Args:
            expected: the other.
            allowed: how far the sums may be apart; where integers are expected, one in 10,000 may be another instead.
        """
        if self.size != expected.size or self.non_finite != expected.non_finite:
            return False
        finite = np.isfinite(expected.sums)
        if not np.array_equal(np.isfinite(self.sums), finite):
            return False
        difference = np.abs(self.sums[finite] - expected.sums[finite])
        if expected.exact:
            return bool(np.count_nonzero(difference > _SAME_INTEGERS) <= _FLIPS * self.size)
        return bool(np.all(difference <= allowed))

    def distance(self, other: "Fingerprint") -> float:
        """Return the largest difference of two sums that are finite, of tensors of one size."""
        difference = self._finite_differences(other)
        return float(np.abs(difference).max(initial=0))

    def root_mean_square(self, other: "Fingerprint") -> float:
        """Return about the root mean square of the differences of the values, of tensors of one size."""
        difference = self._finite_differences(other)
        return float(np.sqrt(np.mean(difference**2))) if difference.size else math.inf

    def _finite_differences(self, other: "Fingerprint") -> NDArray[np.float64]:
        with np.errstate(invalid="ignore"):
            difference = self.sums.astype(np.float64) - other.sums
        return np.asarray(difference[np.isfinite(difference)])


def fingerprint(values: NDArray[Any]) -> Fingerprint:
    """Return what is kept of a tensor of numbers or truth values that has at least one value."""
    exact = values.dtype.kind != "f"
    wide = np.float64 if exact or values.dtype == np.float64 else np.float32
    flat = np.ascontiguousarray(values).reshape(-1).astype(wide, copy=False)
    length = -(-flat.size // RUNS)
    weights: NDArray[Any] = _weights(length).astype(wide)
    whole = flat.size // length * length
    rest = flat[whole:]
    with np.errstate(all="ignore"):  # NaN and infinity are what is looked for
        sums = np.append(flat[:whole].reshape(-1, length) @ weights, [rest @ weights[: rest.size]] if rest.size else [])
        smallest, largest = float(flat.min()), float(flat.max())
        non_finite = 0
        if not np.isfinite([smallest, largest]).all():
            finite = flat[np.isfinite(flat)]
            non_finite = flat.size - finite.size
            smallest, largest = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    uniform = smallest == largest and not non_finite
    return Fingerprint(flat.size, sums.astype(wide), max(-smallest, largest), non_finite, uniform, exact)


def contrast(got: Fingerprint, expected: Fingerprint, origin: str) -> str:
    """Say in words how two tensors that do not match differ; ``origin`` is where the expected one comes from."""
    if got.size != expected.size:
        return f"returns {got.size} values, {origin} {expected.size}"
    if got.non_finite != expected.non_finite:
        return f"returns NaN or infinity in {got.non_finite} of {got.size} values, {origin} in {expected.non_finite}"
    return (
        f"returns values about {got.root_mean_square(expected):.2g} (root mean square) away from those of {origin}, "
        f"which reach {expected.magnitude:.2g}"
    )


def allowance(expected: Fingerprint, noise: float, tolerance: float) -> float:
    """Return how far the sums of a tensor may be from those of ``expected`` if rounding alone has moved them.

    Args:
        expected: the other tensor.
        noise: how far the rounding of the nodes before moves them; see :class:`segship.export.node_by_node.Step`.
        tolerance: how far the node itself may move them, as a share of the largest value.
    """
    return tolerance * expected.magnitude + _NOISE * noise + _ABSOLUTE_TOLERANCE


@functools.cache
def _weights(length: int) -> NDArray[np.float64]:
    if length == 1:
        return np.ones(1)
    random = np.random.default_rng(length).standard_normal(length)
    random -= random.mean()
    random *= np.sqrt(1 - 1 / length) / np.linalg.norm(random)
    return np.asarray(random + 1 / length)
