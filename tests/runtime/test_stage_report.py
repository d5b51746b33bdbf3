import json
import time
from threading import Thread

import pytest

from segship.runtime.pipeline import Crew
from segship.runtime.stage_report import STAGES, StageReport


@pytest.fixture
def passing(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the clock stands at, in seconds; to be set by a test."""
    clock = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    return clock


def timings(**stages: float) -> dict[str, float]:
    return {f"{name}_ms": taken for name, taken in stages.items()}


def test_a_report_of_nothing_says_nothing() -> None:
    report = StageReport(Crew())
    assert (report.stages(), report.bottleneck()) == ([], "")
    assert report.to_plain() == {"stages": {}, "bottleneck": ""}


def test_stages_are_told_in_their_order_with_median_and_share_of_the_time(passing: list[float]) -> None:
    report = StageReport(Crew(workers=3, runs=1, keep_for_network=1))
    for labels in (1, 2, 9):
        report.add(timings(labels=labels, network=10, decode=4, unknown=77))
    passing[0] += 0.060
    stages = report.stages()
    assert [stage.name for stage in stages] == ["decode", "network", "labels"]
    assert [stage.median_ms for stage in stages] == [4, 10, 2]
    assert [stage.busy for stage in stages] == pytest.approx([12 / 120, 30 / 60, 12 / 120])
    assert set(json.loads(json.dumps(report.to_plain()))["stages"]) < set(STAGES)


@pytest.mark.parametrize(
    ("crew", "taken", "words"),
    [
        (Crew(3, 1, 1, 1), {"read": 95, "network": 20}, "the source: it takes 95% of the time"),
        (Crew(3, 1, 1, 1), {"read": 10, "network": 97}, "the network: it is busy 97% of the time"),
        (
            Crew(2, 2, 1, 0),
            {"network": 60, "labels": 130},
            "the CPU: 2 workers are busy 95% of the time, most of it in",
        ),
        (Crew(2, 2, 1, 0), {"network": 60, "labels": 130}, "in the stage labels (68%)"),
        (Crew(3, 1, 1, 1), {"network": 30, "outputs": 60}, "none for long: 3 workers are busy 30% of the time"),
    ],
)
def test_the_bottleneck_is_what_the_others_wait_for(
    passing: list[float], crew: Crew, taken: dict[str, float], words: str
) -> None:
    report = StageReport(crew)
    report.add(timings(**taken))
    passing[0] += 0.1
    assert words in report.bottleneck()
    medians, bottleneck = str(report).splitlines()
    assert medians.startswith("median (busy): ")
    assert f"network {taken['network']:.1f} ms (" in medians
    assert bottleneck == f"bottleneck: {report.bottleneck()}"


def test_what_comes_from_several_threads_is_all_counted(passing: list[float]) -> None:
    report = StageReport(Crew(workers=1, runs=1, keep_for_network=0))
    threads = [
        Thread(target=lambda: [report.add(timings(network=1)) for _ in range(500)])  # type: ignore[func-returns-value]
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    passing[0] += 4
    assert [stage.busy for stage in report.stages()] == pytest.approx([0.5])


def test_memory_does_not_grow_with_the_pictures(passing: list[float]) -> None:
    report = StageReport(Crew(workers=1, runs=1, keep_for_network=0))
    for taken in [1.0] * 10_000 + [3.0] * 10_000:
        report.add(timings(network=taken))
    passing[0] += 80
    (stage,) = report.stages()
    assert stage.median_ms == 3  # of the last ones
    assert stage.busy == pytest.approx(0.5)  # of all
