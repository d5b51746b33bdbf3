"""How near a network comes to what the machine can do at best."""

from segship.benchmarks.graph_cost import GraphCost
from segship.benchmarks.machine_peak import Peaks
from segship.benchmarks.record import Roofline


def roofline(cost: GraphCost, peaks: Peaks, precision: str, network_ns: float) -> Roofline:
    """Hold a network's time against the roofline (Williams, Waterman and Patterson, 2009).

    The roof allows no less time than the arithmetic takes at the peak of its precision, and no less than the bytes
    take at the speed of a copy; the share is this time over the measured one. Near 1 nothing is left to gain on this
    machine but by a cheaper network. It is never cut off: above 1 the roof was measured too low (something else ran
    meanwhile), or it does not hold, since the engine needs fewer products for its convolutions (Winograd's) or the
    network's tensors fit into caches, which are faster than memory.

    Args:
        cost: of one run.
        peaks: of the device and the threads that ran it.
        precision: in which it was calculated: ``fp32``.
        network_ns: median nanoseconds of a run.

    Returns:
        The record; without a share where a peak is not known.
    """
    peak = peaks.gflop_s.get(precision)
    share = None
    if peak is not None and peaks.gbyte_s is not None:
        share = max(cost.gflop / peak, cost.gbyte / peaks.gbyte_s) * 1e9 / network_ns
    return Roofline(cost.gflop, cost.gbyte, peak, peaks.gbyte_s, share)
