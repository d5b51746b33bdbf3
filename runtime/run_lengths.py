"""COCO's run lengths of masks, compressed as its tools do."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def run_lengths(ids: NDArray[np.int32], count: int) -> list[dict[str, Any]]:
    """Return COCO's ``segmentation`` of each region 1…count: ``size`` [H, W] and ``counts``, compressed.

    Counts are lengths of runs down the columns, one column after the other, of pixels outside and inside in turn.

    Args:
        ids: (H, W), the region of each pixel, 0 for none. Each of 1…count must have a pixel.
        count: number of regions.
    """
    height, width = ids.shape
    flat = ids.T.ravel()
    starts = np.flatnonzero(np.diff(flat, prepend=-1))
    ends = np.append(starts[1:], flat.size)
    owners = flat[starts]
    order = np.argsort(owners, kind="stable")
    first = np.searchsorted(owners[order], np.arange(1, count + 2))
    found = []
    for begin, end in zip(first[:-1].tolist(), first[1:].tolist(), strict=True):
        own = order[begin:end]
        bounds = np.stack([starts[own], ends[own]], axis=1).ravel()
        rest = [] if bounds[-1] == flat.size else [flat.size - bounds[-1]]
        counts = np.concatenate([np.diff(bounds, prepend=0), np.array(rest, np.int64)])
        found.append({"size": [height, width], "counts": compress(counts)})
    return found


def compress(counts: NDArray[np.int64]) -> str:
    """Write run lengths as the COCO tools do.

    From the fourth on, each is written as its difference from the one two places before, like a LEB128 number: five
    bits a character, the lowest first, the sixth telling that more follow, 48 added.
    """
    values = counts.astype(np.int64)
    values[3:] -= counts[1:-2]
    characters, is_used = [], []
    uses = np.ones(len(values), np.bool_)
    while uses.any():
        digit = values & 31
        values >>= 5
        more = np.where(digit & 16, values != -1, values != 0)
        characters.append((digit | np.where(more, 32, 0)) + 48)
        is_used.append(uses)
        uses = uses & more
    return np.stack(characters, axis=1)[np.stack(is_used, axis=1)].astype(np.uint8).tobytes().decode("ascii")
