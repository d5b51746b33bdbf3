import pytest

from segship.benchmarks.graph_cost import GraphCost
from segship.benchmarks.machine_peak import Peaks
from segship.benchmarks.record import Roofline
from segship.benchmarks.roofline import roofline

PEAKS = Peaks({"fp32": 100.0, "int8": 400.0}, 10.0)
HEAVY = GraphCost(gflop=2.0, gbyte=0.1)  # 20 ms of arithmetic in fp32, 5 ms in int8, 10 ms of memory


@pytest.mark.parametrize(
    ("precision", "network_ms", "share"),
    [("fp32", 40, 0.5), ("int8", 40, 0.25), ("fp32", 20, 1.0)],
    ids=["arithmetic", "memory", "at the roof"],
)
def test_the_slower_of_arithmetic_and_memory_is_the_roof(precision: str, network_ms: float, share: float) -> None:
    assert roofline(HEAVY, PEAKS, precision, network_ms * 1e6).share == pytest.approx(share)


def test_a_network_faster_than_the_roof_shows_it() -> None:
    assert roofline(HEAVY, PEAKS, "fp32", 16e6).share == pytest.approx(1.25)


def test_without_a_peak_there_is_no_share_but_still_the_cost() -> None:
    assert roofline(HEAVY, PEAKS, "fp16", 20e6) == Roofline(2.0, 0.1, None, 10.0, None)
    assert roofline(HEAVY, Peaks({}, None), "fp32", 20e6) == Roofline(2.0, 0.1, None, None, None)
