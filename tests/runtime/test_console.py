import os
import subprocess
import sys
from collections.abc import Callable

import click
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segship.runtime.console import TRACEBACK_VARIABLE, SizeType, chosen, run
from segship.runtime.errors import ImageError

Command = Callable[..., tuple[int, str, str]]
SIZE = st.integers(1, 99999)
ENDLESS = """
import click
from segship.runtime.console import run

@click.command()
def endless():
    while True:
        click.echo("line")

run(endless)
"""


def failing(error: BaseException) -> click.Command:
    @click.command()
    def fail() -> None:
        raise error

    return fail


@click.command()
@click.argument("size", type=SizeType())
@click.option("--status", default=0)
def show_size(size: tuple[int, int], status: int) -> int:
    """Print a size."""
    click.echo(f"{size[0]} high")
    return status


def test_what_a_command_returns_is_its_exit_status(command: Command) -> None:
    assert command(show_size, "3x4") == (0, "3 high\n", "")
    assert command(show_size, "3x4", "--status", 3) == (3, "3 high\n", "")
    assert command(show_size, "--help")[0] == 0


def test_an_error_is_one_line_and_status_1(command: Command) -> None:
    assert command(failing(ImageError("a.png: damaged picture"))) == (1, "", "error: a.png: damaged picture\n")


def test_bad_use_is_status_2_and_says_what_was_wrong(command: Command) -> None:
    status, out, err = command(show_size, "3x4", "--colour")
    assert (status, out) == (2, "")
    assert "Usage: " in err
    assert "No such option" in err


def test_an_interruption_is_status_130_and_one_line(command: Command) -> None:
    for error in (KeyboardInterrupt(), click.Abort()):
        status, out, err = command(failing(error))
        assert (status, out) == (130, "")
        assert err.strip() == "error: interrupted; what was finished is whole"


def test_a_fault_is_one_line_that_says_how_to_see_where(command: Command) -> None:
    status, out, err = command(failing(ZeroDivisionError("on two\nlines")))
    assert (status, out) == (1, "")
    assert err.startswith("error: a fault in segship or a library it uses: ZeroDivisionError: on two lines; ")
    assert f"{TRACEBACK_VARIABLE}=1" in err
    assert err.count("\n") == 1


def test_where_no_temporary_file_can_be_made_it_says_what_to_do(command: Command) -> None:
    status, _, err = command(failing(FileNotFoundError(2, "No usable temporary directory found in ['/tmp']")))
    assert (status, err.count("\n")) == (1, 1)
    assert "set TMPDIR" in err
    assert "a fault in segship" in command(failing(FileNotFoundError(2, "No such file or directory", "x")))[2]


def test_running_out_of_memory_is_one_line(command: Command) -> None:
    status, _, err = command(failing(MemoryError()))
    assert (status, err.count("\n")) == (1, 1)
    assert "out of memory" in err


@pytest.mark.parametrize("error", [ImageError("a.png"), ZeroDivisionError("x")])
def test_a_traceback_is_there_for_who_asks(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TRACEBACK_VARIABLE, "1")
    monkeypatch.setattr(sys, "argv", ["fail"])
    with pytest.raises(type(error)):
        run(failing(error))


def test_a_closed_pipe_is_no_error_message() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-c", ENDLESS], stdout=writer, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")


@settings(max_examples=30, deadline=None)
@given(SIZE, SIZE, st.sampled_from("xX×"))
def test_a_size_is_height_by_width(height: int, width: int, sign: str) -> None:
    assert SizeType().convert(f"{height}{sign}{width}", None, None) == (height, width)
    assert SizeType().convert(str(height), None, None) == (height, height)


@pytest.mark.parametrize("text", ["", "x", "3x", "x4", "3x4x5", "-3x4", "0x4", "3.5x4", "3 x 4", "wide"])
def test_what_is_no_size_is_bad_use(command: Command, text: str) -> None:
    status, out, err = command(show_size, "--", text)
    assert (status, out) == (2, "")
    assert f"{text!r} is no size; expected HEIGHTxWIDTH" in err


def test_chosen_names_are_listed_once_and_in_their_own_order() -> None:
    known = ("mask", "color", "overlay")
    assert chosen("overlay, mask,overlay", known, "--save") == ("mask", "overlay")
    assert chosen("", known, "--save") == ()
    with pytest.raises(click.UsageError, match="--save: 'masks' is not known; known are mask, color, overlay"):
        chosen("mask,masks", known, "--save")
