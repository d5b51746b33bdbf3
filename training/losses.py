"""The training loss: cross-entropy, Dice and focal terms, their weighted sums, and which pixels they count."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

from segship.runtime.errors import TrainingError

PIXEL_TERMS: Final = ("ce", "bce", "focal")
TERMS: Final = (*PIXEL_TERMS, "dice")


@dataclass(frozen=True)
class LossConfig:
    """What a training run minimises.

    Attributes:
        terms: a sum of ``ce``, ``bce`` (networks of one channel), ``dice`` and ``focal``, each with a weight before it
            where that is not 1: ``ce``, ``ce+dice``, ``ce+0.5*dice``.
        class_weights: of the pixels of each class in ``ce``, ``bce`` and ``focal``: ``none``, ``auto`` (by median
            frequency) or numbers separated by commas. Pixels of a class with weight 0 are void, for ``dice`` too.
        ohem: online hard example mining; pixels whose true class has at most this probability are hard, and ``ce``,
            ``bce`` and ``focal`` count hard pixels only. 0 counts all pixels; 0.7 is usual.
        ohem_min_share: of a picture's valid pixels, the share that counts as hard at least.
        focal_gamma: how fast ``focal`` fades for pixels that are predicted well; 0 makes it ``ce``.
        label_smoothing: of ``ce`` and ``bce``; this share of the truth is spread evenly over all classes.
        output_weights: of the losses of the network's outputs, the main one first; empty: 1 for each.
    """

    terms: str = "ce"
    class_weights: str = "none"
    ohem: float = 0.0
    ohem_min_share: float = 1 / 16
    focal_gamma: float = 2.0
    label_smoothing: float = 0.0
    output_weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what is no loss, or what would have no effect on it.

        Raises:
            TrainingError: naming the value and what was expected.
        """
        terms = parse_terms(self.terms)
        for name, value, fits, expected in (
            ("ohem", self.ohem, 0 <= self.ohem <= 1, "a probability, or 0 for none"),
            ("ohem_min_share", self.ohem_min_share, 0 < self.ohem_min_share <= 1, "a share above 0, up to 1"),
            ("focal_gamma", self.focal_gamma, 0 <= self.focal_gamma < math.inf, "a number of 0 or more"),
            ("label_smoothing", self.label_smoothing, 0 <= self.label_smoothing < 1, "a share from 0 to below 1"),
        ):
            if not fits:
                raise TrainingError(f"{name} is {value}; expected {expected}")
        if not all(0 <= weight < math.inf for weight in self.output_weights) or (
            self.output_weights and not any(self.output_weights)
        ):
            raise TrainingError(f"output_weights is {self.output_weights}; expected numbers of 0 or more, not all 0")
        for name, used, takers in (
            ("ohem", self.ohem > 0, PIXEL_TERMS),
            ("class_weights", self.class_weights != "none", PIXEL_TERMS),
            ("label_smoothing", self.label_smoothing > 0, ("ce", "bce")),
        ):
            if used and not terms.keys() & set(takers):
                raise TrainingError(f"{name} has no effect on the loss {self.terms}; it is for {', '.join(takers)}")


def parse_terms(text: str) -> dict[str, float]:
    """Read a sum of loss terms such as ``ce+0.5*dice``.

    Returns:
        The weight of each term.

    Raises:
        TrainingError: if a term is unknown or stands twice, or its weight is no number above 0.
    """
    terms: dict[str, float] = {}
    for part in text.split("+"):
        factor, star, name = (piece.strip() for piece in part.rpartition("*"))
        if name not in TERMS:
            raise TrainingError(f"the loss {text!r} has no known term in {part!r}; known are {', '.join(TERMS)}")
        if name in terms:
            raise TrainingError(f"the loss {text!r} has {name} twice; give it one weight instead, such as 2*{name}")
        try:
            weight = float(factor) if star else 1.0
        except ValueError:
            weight = math.nan
        if not 0 < weight < math.inf:
            raise TrainingError(
                f"the loss {text!r} has the weight {factor!r}; expected a number above 0, as in 0.5*{name}"
            )
        terms[name] = weight
    return terms


class SegmentationLoss:
    """The loss of a batch that may be spread over several processes.

    Each process is given its part of the batch and returns its share of the loss: the shares, and their gradients, sum
    to what one process would compute on the whole batch. (Processes that average gradients must scale them up again.)

    A network of one channel is a network of two classes with the logits (0, z), in every term.

    Args:
        config: terms and their settings; ``config.class_weights`` is given as numbers below.
        num_classes: channels of the logits; 1 for a binary network.
        ignore_index: label of void pixels.
        class_weights: of each class, two of a binary network; None: 1 for each.
        total: sums a tensor over the processes, its gradient likewise.
        processes: that share the batch.

    Raises:
        TrainingError: if a term is not for this number of channels, or the class weights are not one for each class.
    """

    def __init__(
        self,
        config: LossConfig,
        *,
        num_classes: int,
        ignore_index: int,
        class_weights: Sequence[float] | None = None,
        total: Callable[[Tensor], Tensor] = lambda tensor: tensor,
        processes: int = 1,
    ) -> None:
        self.config = config
        self.ignore_index = ignore_index
        self.class_weights = class_weights
        self.total = total
        self.processes = processes
        self._pixel_terms = parse_terms(config.terms)
        self._dice_weight = self._pixel_terms.pop("dice", 0.0)
        if num_classes == 1 and "ce" in self._pixel_terms:
            raise TrainingError("the loss ce is for several channels, the network has one; take bce in its place")
        if num_classes > 1 and "bce" in self._pixel_terms:
            raise TrainingError(f"the loss bce is for one channel, the network has {num_classes}; take ce in its place")
        if class_weights is not None and len(class_weights) != max(2, num_classes):
            raise TrainingError(
                f"the class weights are {class_weights}; expected one for each of {max(2, num_classes)} classes"
            )

    def __call__(self, outputs: Sequence[Tensor], labels: Tensor) -> Tensor:
        """Return this process's share of the loss.

        Args:
            outputs: logits (N, C, h, w) of any float type, the main output first; computed with in float32. One that is
                smaller than the labels is compared with the label nearest to each of its pixels.
            labels: class ids and the ignore index, (N, H, W), any integer type.

        Returns:
            A float32 scalar; 0, with a gradient of 0, where every pixel of the whole batch is void.

        Raises:
            TrainingError: if ``output_weights`` are not as many as the outputs.
        """
        output_weights = torch.tensor(self._output_weights(len(outputs)), dtype=torch.float32, device=labels.device)
        labels = labels.long()
        void = labels == self.ignore_index
        labels = labels.masked_fill(void, 0)  # a class that can be looked up; the weight of 0 leaves it out
        weights = self._pixel_weights(labels).masked_fill(void, 0)
        sums, normalisers, volumes = [], [], []
        for output in outputs:
            near_labels, near_weights = _nearest(labels, output), _nearest(weights, output)
            log_p = _log_probabilities(output)
            nll = F.nll_loss(log_p, near_labels, reduction="none")
            if self._pixel_terms:
                counted = self._only_hard(near_weights, nll)
                sums.append((counted * self._pixel_losses(log_p, nll)).sum())
                normalisers.append(counted.sum())
            if self._dice_weight:
                volumes.append(class_volumes(log_p, nll, near_labels, near_weights > 0))
        loss = torch.zeros((), device=labels.device)
        if sums:
            normaliser = self.total(torch.stack(normalisers))
            means = torch.stack(sums) / torch.where(normaliser > 0, normaliser, 1)
            loss = loss + (output_weights * means).sum()
        if volumes:
            losses = dice_loss(self.total(torch.stack(volumes))) / self.processes  # every process has the whole value
            loss = loss + self._dice_weight * (output_weights * losses).sum()
        return loss

    def _output_weights(self, count: int) -> tuple[float, ...]:
        weights = self.config.output_weights or (1.0,) * count
        if len(weights) != count:
            raise TrainingError(
                f"output_weights is {weights}; expected one for each output of the network, in all {count}"
            )
        return weights

    def _pixel_weights(self, labels: Tensor) -> Tensor:
        if self.class_weights is None:
            return torch.ones(labels.shape, device=labels.device)
        return torch.tensor(self.class_weights, dtype=torch.float32, device=labels.device)[labels]

    def _only_hard(self, weights: Tensor, nll: Tensor) -> Tensor:
        if not self.config.ohem:
            return weights
        return weights * hard_pixels(nll.detach(), weights > 0, self.config.ohem, self.config.ohem_min_share)

    def _pixel_losses(self, log_p: Tensor, nll: Tensor) -> Tensor:
        losses = []
        for term, weight in self._pixel_terms.items():
            if term == "focal":
                losses.append(weight * focal_loss(nll, self.config.focal_gamma))
            elif smoothing := self.config.label_smoothing:
                losses.append(weight * ((1 - smoothing) * nll - smoothing * log_p.mean(dim=1)))
            else:
                losses.append(weight * nll)
        return sum(losses[1:], start=losses[0])


def _nearest(plane: Tensor, output: Tensor) -> Tensor:
    """Bring a plane (N, H, W) to the size of an output (N, C, h, w), by its nearest pixels."""
    height, width = output.shape[2:]
    if plane.shape[1:] == (height, width):
        return plane
    rows, columns = (
        ((torch.arange(small, device=plane.device) + 0.5) * (large / small)).long()
        for small, large in ((height, plane.shape[1]), (width, plane.shape[2]))
    )
    return plane[:, rows][:, :, columns]


def _log_probabilities(logits: Tensor) -> Tensor:
    logits = logits.float()
    if logits.shape[1] == 1:
        return F.logsigmoid(torch.cat((-logits, logits), dim=1))
    return F.log_softmax(logits, dim=1)


def focal_loss(nll: Tensor, gamma: float) -> Tensor:
    """Return the focal loss (1 − p)^γ · −log p of each pixel.

    Lin et al., Focal Loss for Dense Object Detection, 2017; class weights stand in for its α.

    Args:
        nll: −log p of the true class, any shape.
        gamma: 0 or more.
    """
    wrong = -torch.expm1(-nll)  # 1 − p, exact for p near 1
    return wrong.clamp(min=torch.finfo(wrong.dtype).tiny) ** gamma * nll  # at 0 a power below 1 has no finite slope


def hard_pixels(nll: Tensor, valid: Tensor, probability: float, min_share: float) -> Tensor:
    """Choose the pixels that online hard example mining trains on.

    Hard are those whose true class has at most a given probability (Shrivastava et al., Training Region-based Object
    Detectors with Online Hard Example Mining, 2016); where they are too few, the hardest of the picture (as in
    bootstrapping, Wu et al., Bridging Category-level and Instance-level Semantic Image Segmentation, 2016; BiSeNet,
    Yu et al., 2018, trains with it). Each picture has a choice of its own, so that it does not matter which others
    are in the batch.

    Args:
        nll: −log p of the true class, (N, H, W).
        valid: pixels to choose among, (N, H, W) bool.
        probability: above 0, up to 1.
        min_share: of the valid pixels of each picture, to choose at least; rounded up, and ties all chosen.

    Returns:
        The chosen pixels, (N, H, W) bool.
    """
    hardness = nll.masked_fill(~valid, -1).flatten(1)  # (N, H·W); void below all others
    least = (valid.flatten(1).sum(dim=1, keepdim=True).double() * min_share).ceil().long()  # (N, 1)
    hardest = hardness.topk(math.ceil(hardness.shape[1] * min_share), dim=1).values
    cut = hardest.gather(1, (least - 1).clamp(min=0)).clamp(max=-math.log(probability))
    return (hardness >= cut).view_as(valid) & valid


def class_volumes(log_p: Tensor, nll: Tensor, labels: Tensor, valid: Tensor) -> Tensor:
    """Sum, for each class over the valid pixels: the overlap of prediction and truth, the prediction, the truth.

    Args:
        log_p: logarithms of the probabilities, (N, C, H, W).
        nll: −log p of the true class, (N, H, W).
        labels: class ids, (N, H, W) int64.
        valid: pixels that count, (N, H, W) bool.

    Returns:
        The three sums, (3, C).
    """
    counts = valid.float()  # as float32 the products below need no conversion
    overlap = _sum_by_class(torch.exp(-nll) * counts, labels, log_p.shape[1])
    predicted = (log_p.exp() * counts.unsqueeze(1)).sum(dim=(0, 2, 3))
    return torch.stack((overlap, predicted, _sum_by_class(counts, labels, log_p.shape[1])))


def _sum_by_class(values: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Sum values (N, H, W) by label; row by row first, since one long float32 sum would lose digits."""
    rows = values.new_zeros(*labels.shape[:2], num_classes)
    return rows.scatter_add(2, labels, values).sum(dim=(0, 1))


def dice_loss(volumes: Tensor) -> Tensor:
    """Return 1 − soft Dice, the mean over the classes that the truth of the batch has.

    Milletari et al., V-Net, 2016, with plain volumes in place of squared ones (Drozdzal et al., The Importance of Skip
    Connections in Biomedical Image Segmentation, 2016), over the whole batch. A class that the truth lacks has an
    overlap of 0 whatever is predicted: it would only add a constant and lessen the weight of the others, while false
    pixels of it already cost the classes that they belong to. Those left have a volume of at least one pixel, and so no
    smoothing is needed.

    Args:
        volumes: those of :func:`class_volumes`, (..., 3, C).

    Returns:
        The loss, (...); 0 where the truth has no class.
    """
    overlap, predicted, truth = volumes.unbind(dim=-2)
    present = truth > 0
    distance = 1 - 2 * overlap / (predicted + truth).clamp(min=1)
    return torch.where(present, distance, 0).sum(dim=-1) / present.sum(dim=-1).clamp(min=1)
