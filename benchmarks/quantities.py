"""Numbers with a unit, as the command takes them, and those that comparisons take where none is given."""

from typing import Final

import click

MARGIN: Final = 0.05
"""Of two records: slower by no more than this share is no regression."""

TOLERANCE: Final = 0.005
"""Of two records: mIoU, 0…1, that the new one may lose."""


class Quantity(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.4 on only
    """A number of a unit, as how many of the smallest of the units' kind it is.

    Args:
        name: of what it is, in help texts.
        units: how much each is; of "" a number alone.
        example: of one, for error messages.
        bare_below: a number alone must be less, since one that is not was most likely meant in per cent.
    """

    def __init__(self, name: str, units: dict[str, float], example: str, bare_below: float = float("inf")) -> None:
        self.name, self._units, self._example, self._bare_below = name, units, example, bare_below

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Parse the text that was given."""
        if isinstance(value, float):
            return value
        text = str(value).strip().lower()
        number = text.rstrip("abcdefghijklmnopqrstuvwxyz%/").strip()
        try:
            found = float(number) * self._units[text[len(number) :].strip()]
        except (ValueError, KeyError):
            found = -1.0
        if not 0 <= found < float("inf"):
            self.fail(f"{value!r} is none; expected one such as {self._example}", param, ctx)
        if number == text and found >= self._bare_below:
            self.fail(f"{value!r} alone would be {found:.0%}; write {number}%, or {found:.0%}", param, ctx)
        return found


TIME: Final = Quantity("TIME", {"ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}, "20ms, 1.5s or 5m")
"""In seconds."""

SHARE: Final = Quantity("SHARE", {"%": 0.01, "": 1.0}, "5% or 0.05", bare_below=1.0)
"""1 is all. Without the sign it must be less than 1."""

RATE: Final = Quantity("RATE", {"": 1.0, "/s": 1.0}, "30 or 30/s")
"""In pictures a second."""

MEMORY: Final = Quantity("MB", {"": 1.0, "mb": 1.0, "gb": 1000.0}, "500, 500MB or 1.5GB")
"""In 10⁶ bytes."""
