"""What the commands share: errors as one line and an exit status, and kinds of options."""

import io
import os
import sys
import warnings
from collections.abc import Callable, Iterable
from typing import NoReturn, TypeVar

import click

from segship.runtime.errors import EXIT_ERROR, EXIT_INTERRUPTED, EXIT_OK, SegshipError, one_line

Name = TypeVar("Name", bound=str)

TRACEBACK_VARIABLE = "SEGSHIP_TRACEBACK"


class SizeType(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.4 on only
    """``HxW``, or one number for a square, as (height, width)."""

    name = "HxW"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        """Parse the text that was given."""
        if isinstance(value, tuple):
            return value
        sides = str(value).lower().replace("×", "x").split("x")
        if len(sides) > 2 or not all(side.isdecimal() and int(side) > 0 for side in sides):
            self.fail(
                f"{value!r} is no size; expected HEIGHTxWIDTH in pixels, such as 360x480, or one number", param, ctx
            )
        return int(sides[0]), int(sides[-1])


class PixelsType(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.4 on only
    """A number of pixels, or of millions of them with an ``M``."""

    name = "N[M]"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Parse the text that was given."""
        text = str(value).strip().upper()
        number = text.removesuffix("M")
        if not (number.isascii() and number.isdecimal() and 0 < int(number) < 10**12):
            self.fail(f"{value!r} is no number of pixels; expected one such as 500000000, or 500M", param, ctx)
        return int(number) * (1_000_000 if text.endswith("M") else 1)


def completing(
    names: Callable[[], Iterable[str]], *, several: bool = False
) -> Callable[[click.Context, click.Parameter, str], list[str]]:
    """Return what tells a shell the words that a value may become, where others are no error of the command line.

    Args:
        names: returns them; what it imports is imported when a shell asks.
        several: the value is a comma-separated list, of which the last is completed.
    """

    def complete(_context: click.Context, _parameter: click.Parameter, typed: str) -> list[str]:
        before, comma, last = typed.rpartition(",") if several else ("", "", typed)
        done = before.split(",")
        return [f"{before}{comma}{name}" for name in names() if name.startswith(last) and name not in done]

    return complete


def _backends() -> Iterable[str]:
    from importlib.metadata import entry_points

    return sorted(point.name for point in entry_points(group="segship.backends"))


complete_backends = completing(_backends)
complete_devices = completing(lambda: ("auto", "cpu", "cuda"))
complete_conversions = completing(lambda: ("depth", "grey", "alpha"), several=True)

device_option = click.option(
    "--device",
    default="auto",
    shell_complete=complete_devices,
    help="auto, cpu, cuda[:N] or what else the engine has. What is asked for runs, or it is an error.",
)
convert_option = click.option(
    "--convert",
    default="",
    metavar="WHAT",
    shell_complete=complete_conversions,
    help="Lossy conversions to allow: depth, grey, alpha.",
)


def chosen(text: str, known: tuple[Name, ...], option: str) -> tuple[Name, ...]:
    """Return which of the ``known`` names a comma-separated list names, in their own order and once each.

    Raises:
        click.UsageError: naming what is not known.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in known:
            raise click.UsageError(f"{option}: {name!r} is not known; known are {', '.join(known)}")
    return tuple(name for name in known if name in names)


def run(command: click.Command) -> NoReturn:
    """Run a command and exit: with what it returns, or with one line on stderr and the status of its error."""
    warnings.filterwarnings("ignore", module=r"PIL\.")  # what Pillow warns of is read all the same, or is our error
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # for names of files that are no Unicode, and consoles that are none
            stream.reconfigure(errors="backslashreplace")
    try:
        status = command.main(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        status = error.exit_code
    except (KeyboardInterrupt, click.Abort):
        status = _complain("interrupted; what was finished is whole", EXIT_INTERRUPTED)
    except SegshipError as error:
        _raise_if_asked()
        status = _complain(str(error), EXIT_ERROR)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the flush at exit complains
        status = EXIT_ERROR
    except FileNotFoundError as error:
        _raise_if_asked()
        status = _complain(_of_missing_file(error), EXIT_ERROR)
    except MemoryError:
        status = _complain("out of memory; take a smaller --size, batch or picture", EXIT_ERROR)
    except Exception as error:  # noqa: BLE001  # a traceback reaches no user
        _raise_if_asked()
        status = _complain(_of_fault(error), EXIT_ERROR)
    sys.exit(status if isinstance(status, int) else EXIT_OK)


def _of_missing_file(error: FileNotFoundError) -> str:
    if "No usable temporary directory" in str(error):  # Python's own words, the only thing that tells it from others
        return "no folder for temporary files can be written to; set TMPDIR to one, or mount a tmpfs at /tmp"
    return _of_fault(error)


def _of_fault(error: Exception) -> str:
    name = type(error).__name__
    return (
        f"a fault in segship or a library it uses: {name}: {one_line(error)}; set {TRACEBACK_VARIABLE}=1 to see where"
    )


def _complain(message: str, status: int) -> int:
    click.echo(f"error: {message}", err=True)
    return status


def _raise_if_asked() -> None:
    if os.environ.get(TRACEBACK_VARIABLE):
        raise
