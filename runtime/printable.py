"""Words of a stranger in messages: names of files, texts in models."""

import re
from pathlib import Path
from typing import Final

_STEERING: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters, ends of lines, turns of the direction of writing, and halves of characters. No other character
that Python calls unprintable: names hold narrow spaces and joined emoji, and are to be found again by what is told."""


def printable(text: str | Path) -> str:
    """Return a path, or words of a stranger, for messages: with escapes for what is no Unicode or steers a terminal."""
    return _STEERING.sub(_escape, str(text))


def _escape(found: re.Match[str]) -> str:
    code = ord(found[0])
    if 0xDC80 <= code <= 0xDCFF:
        code -= 0xDC00  # how Python keeps a byte of a name that is no UTF-8
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
