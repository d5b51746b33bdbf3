"""Processes of our own end as they are asked to, and say in one line why they did not."""

import os
from pathlib import Path

import pytest

from segship.benchmarks.processes import own_process, run_own
from segship.benchmarks.record import BenchError


def test_what_a_process_writes_is_returned_and_what_it_is_given_reaches_it(tmp_path: Path) -> None:
    (tmp_path / "given").write_text("words")
    program = "import os, sys; print(sys.stdin.read(), os.environ['IT'])"
    with (tmp_path / "given").open("rb") as file:
        told = run_own(["-c", program], 60, name="it", stdin=file, environment=os.environ | {"IT": "set"})
    assert told == "words set\n"


@pytest.mark.parametrize(
    ("last", "told"),
    [
        ("error: no such model", ": no such model"),
        ("Error: No such option", ": No such option"),
        ("segship.runtime.errors.ModelError: no such model", ": no such model"),
        ("MemoryError", ": MemoryError"),
        ("", ""),
    ],
)
def test_a_process_that_fails_is_told_with_its_last_line(last: str, told: str) -> None:
    program = f"import sys; sys.stderr.write('Traceback:\\n{last}\\n\\n' if {last!r} else ''); sys.exit(3)"
    with pytest.raises(BenchError) as caught:
        run_own(["-c", program], 60, name="it")
    assert str(caught.value) == f"it ended with status 3{told}"


def test_a_process_that_takes_too_long_is_ended() -> None:
    with (
        pytest.raises(BenchError, match=r"it took longer than 0\.5 s after a while"),
        own_process(["-c", "import time; time.sleep(600)"], 0.5, name="it", at=lambda: " after a while") as process,
    ):
        pass
    assert process.returncode not in (None, 0)


def test_a_process_that_is_left_is_ended() -> None:
    with (
        pytest.raises(KeyboardInterrupt),
        own_process(["-c", "import time; time.sleep(600)"], 600, name="it") as process,
    ):
        raise KeyboardInterrupt
    assert process.returncode not in (None, 0)
