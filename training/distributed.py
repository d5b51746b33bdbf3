"""One run on several devices, one process each, as ``torchrun`` or ``accelerate launch`` start them.

One rule keeps the mathematics the same as in a single process: every process holds its *share* of each sum. The shares
of the loss add up to the loss of the whole batch, so that gradients, too, simply add up; batch normalisation and
Dice's sums are those of the whole batch through :meth:`World.total`, which gradients flow through.
"""

import os
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, cast

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn

from segship.runtime.errors import EXIT_ERROR, EXIT_INTERRUPTED, DeviceError, TrainingError, one_line
from segship.training.device import pick_device

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store  # not in every build of PyTorch


class World:
    """The processes of a run, and which of them this one is.

    It is a context manager. Where one process fails, the others do, too, if only since it is gone: the error of the
    first that fails is raised, and the others end in silence, by ``SystemExit``.

    Args:
        rank: number of this process, from 0; process 0 is the one that writes.
        size: number of processes.
        device: that this process computes on.
        store: that the processes share, if there are several.
    """

    def __init__(self, rank: int, size: int, device: torch.device, store: "Store | None" = None) -> None:
        self.rank, self.size, self.device = rank, size, device
        self._store = store

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes and talks."""
        return self.rank == 0

    def total(self, share: Tensor) -> Tensor:
        """Add up a tensor over the processes; gradients flow through."""
        return share if self.size == 1 else cast("Tensor", _Total.apply(share))  # type: ignore[no-untyped-call]

    def total_counts(self, counts: NDArray[np.int64]) -> NDArray[np.int64]:
        """Add up whole numbers over the processes."""
        if self.size == 1:
            return counts
        return cast("NDArray[np.int64]", _sum(torch.from_numpy(counts).to(self.device)).cpu().numpy())

    def add_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Add up the gradients over the processes, in one message."""
        if self.size == 1:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = _sum(torch.cat([gradient.flatten() for gradient in gradients]))
        wholes = torch.split(flat, [gradient.numel() for gradient in gradients])
        for gradient, whole in zip(gradients, wholes, strict=True):
            gradient.copy_(whole.view_as(gradient))

    def shard(self, indices: Sequence[int]) -> Sequence[int]:
        """Return this process's part of a list."""
        return indices[self.rank :: self.size]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._store is None:
            return
        if error is None:
            dist.destroy_process_group()  # not after an error: it may wait for a process that is gone
        elif not _is_first_to_fail(self._store):
            raise SystemExit(EXIT_INTERRUPTED if isinstance(error, KeyboardInterrupt) else EXIT_ERROR) from error


def join_world(device: str) -> World:
    """Join the processes that a launcher started; without one, this process is the whole world.

    Args:
        device: ``auto``, ``cpu`` or ``cuda[:N]``. With several processes each ``cuda`` or ``auto`` one takes the GPU of
            its local rank.

    Raises:
        DeviceError: if the device is not there, or the processes do not find each other.
    """
    given = os.environ.get("WORLD_SIZE", "1")
    if not given.isdecimal() or int(given) < 1:
        raise DeviceError(f"WORLD_SIZE is {given!r}; expected the number of processes, as torchrun sets it")
    size = int(given)
    if size == 1:
        return World(0, 1, pick_device(device))
    on_gpu = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    if not on_gpu and device not in ("auto", "cpu"):
        raise DeviceError(f"--device {device} names one device, and {size} processes run; expected auto, cpu or cuda")
    chosen = pick_device(f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if on_gpu else "cpu")
    if on_gpu:
        torch.cuda.set_device(chosen)
    from torch.distributed.rendezvous import rendezvous

    try:
        store, rank, size = next(rendezvous("env://"))
        dist.init_process_group("nccl" if on_gpu else "gloo", store=store, rank=rank, world_size=size)
    except (RuntimeError, ValueError) as error:
        raise DeviceError(
            f"WORLD_SIZE is {given}, and the processes did not find each other ({one_line(error)}); start them by "
            "torchrun or accelerate launch"
        ) from error
    return World(rank, size, chosen, store)


def has_joined() -> bool:
    """Whether this process belongs to a group of several, which it does until it has left it without an error."""
    return dist.is_available() and dist.is_initialized()


def share_batch_norm(network: nn.Module, world: World) -> None:
    """Make every batch normalisation of a network use the statistics of the whole batch, in place.

    PyTorch's own refuses CPU tensors. Parameters, buffers and their names stay.
    """
    if world.size == 1:
        return
    for parent in list(network.modules()):
        for name, module in parent.named_children():
            if isinstance(module, nn.BatchNorm2d):
                shared = _SharedBatchNorm(module.num_features, module.eps, module.momentum, world=world)
                shared.weight, shared.bias = module.weight, module.bias
                for buffer, value in module.named_buffers():
                    setattr(shared, buffer, value)
                setattr(parent, name, shared)


class _SharedBatchNorm(nn.BatchNorm2d):
    """Batch normalisation with the statistics of the batches of all processes."""

    def __init__(self, channels: int, eps: float, momentum: float | None, *, world: World) -> None:
        super().__init__(channels, eps, momentum)
        self.world = world

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to the same shape."""
        if not self.training:
            return super().forward(x)
        wide = x.float()
        count = torch.tensor(float(x.numel() // x.shape[1]), device=x.device)
        count = _sum(count)
        mean = self.world.total(wide.sum(dim=(0, 2, 3))) / count
        centred = wide - mean.view(1, -1, 1, 1)
        variance = self.world.total(centred.square().sum(dim=(0, 2, 3))) / count
        self._remember(mean.detach(), variance.detach() * count / (count - 1))
        scale = self.weight * torch.rsqrt(variance + self.eps)
        normalised = centred * scale.view(1, -1, 1, 1) + self.bias.view(1, -1, 1, 1)
        return normalised.to(x.dtype)

    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance, share)


class _Total(torch.autograd.Function):
    """Sum over the processes, forwards; each share counts in all of their losses, so gradients are summed too."""

    @staticmethod
    def forward(_: Any, share: Tensor) -> Tensor:
        return _sum(share)

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> Tensor:
        return _sum(gradient)


def _sum(share: Tensor) -> Tensor:
    whole = share.detach().clone().contiguous()
    try:
        dist.all_reduce(whole)
    except RuntimeError as error:
        raise TrainingError(
            f"another process of the run is gone or cannot be reached ({one_line(error)}); the run goes on from its "
            "last state by --resume"
        ) from error
    return whole


def _is_first_to_fail(store: "Store") -> bool:
    try:
        return bool(store.add("segship: processes that failed", 1) == 1)
    except RuntimeError:  # it was in a process that is gone, without a word perhaps; launchers keep it themselves
        return True
