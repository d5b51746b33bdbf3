from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from segship.runtime.errors import CardError, SegshipError, TrainingError
from segship.runtime.strict import parse


@dataclass(frozen=True)
class Inner:
    side: int = 3


@dataclass(frozen=True)
class Everything:
    name: str
    share: float = 0.5
    flip: bool = True
    out: Path = Path()
    mode: Literal["a", "b"] = "a"
    size: tuple[int, int] | None = None
    names: tuple[str, ...] = ()
    options: dict[str, int | str] = field(default_factory=dict)
    inner: Inner = field(default_factory=Inner)


def test_plain_values_become_the_dataclass() -> None:
    value = {
        "name": "x",
        "share": 1,
        "flip": False,
        "out": "runs/1",
        "mode": "b",
        "size": [4, 5],
        "names": ("p", "q"),
        "options": {"depth": 2, "backbone": "vgg16"},
        "inner": {"side": 7},
    }
    expected = Everything(
        "x", 1.0, False, Path("runs/1"), "b", (4, 5), ("p", "q"), {"depth": 2, "backbone": "vgg16"}, Inner(7)
    )
    assert parse(Everything, value, "config", TrainingError) == expected
    assert isinstance(parse(Everything, value, "config", TrainingError).share, float)


def test_what_is_left_out_has_its_default() -> None:
    assert parse(Everything, {"name": "x"}, "config", TrainingError) == Everything("x")
    assert parse(Everything, {"name": "x", "size": None}, "config", TrainingError) == Everything("x")


@pytest.mark.parametrize("error", [CardError, TrainingError])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"nam": "y"}, "config has the unknown key 'nam'; known are name, share"),
        ({"inner": {"sides": 1}}, "config.inner has the unknown key 'sides'; known are side"),
        ({"inner": 3}, "config.inner is '3'; expected an object"),
        ({"name": None}, "config.name is 'None'; expected str"),
        ({"share": True}, "config.share is 'True'; expected float"),
        ({"share": float("inf")}, "config.share is 'inf'; expected float"),
        ({"flip": 1}, "config.flip is '1'; expected bool"),
        ({"out": 3}, "config.out is '3'; expected Path"),
        ({"mode": "c"}, "config.mode is 'c'; expected one of a, b"),
        ({"size": [4]}, "config.size has 1 values; expected 2"),
        ({"size": [4, True]}, r"config.size\[1\] is 'True'; expected int"),
        ({"names": ["p", 1]}, r"config.names\[1\] is '1'; expected str"),
        ({"names": "pq"}, "config.names is 'pq'; expected a list of str"),
        ({"options": {"depth": 1.5}}, "config.options.depth is '1.5'; expected int or str"),
        ({"options": {"depth": True}}, "config.options.depth is 'True'; expected int or str"),
    ],
)
def test_what_does_not_fit_is_named_with_its_place(
    change: dict[str, Any], words: str, error: type[SegshipError]
) -> None:
    with pytest.raises(error, match=words) as caught:
        parse(Everything, {"name": "x"} | change, "config", error)
    assert "\n" not in str(caught.value)


def test_what_is_missing_is_named() -> None:
    with pytest.raises(TrainingError, match="config lacks name"):
        parse(Everything, {}, "config", TrainingError)
