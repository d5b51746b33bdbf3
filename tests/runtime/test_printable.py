from pathlib import Path

import pytest

from segship.runtime.printable import printable


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Straße\x1b[2J\n道路", r"Straße\x1b[2J\x0a道路"),
        ("a\u202eb\u2028c", r"a\u202eb\u2028c"),
        ("a\udcffb\ud800", r"a\xffb\ud800"),
        ("10.30\u202fAM 👩\u200d🔬", "10.30\u202fAM 👩\u200d🔬"),
        (Path("a b"), "a b"),
    ],
)
def test_what_steers_a_terminal_is_escaped_and_nothing_else(text: str | Path, expected: str) -> None:
    assert printable(text) == expected
