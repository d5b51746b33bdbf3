"""Write docs/commands.md, the reference of all commands, from the commands themselves.

python docs/make_commands.py          (or: make docs)
"""

import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import click

from segship.runtime.files import write_text
from segship.runtime.knobs import describe_knobs

PAGE: Final = Path(__file__).with_name("commands.md")

COMMANDS: Final = {
    "seg-train": "segship.training.cli:seg_train",
    "seg-export": "segship.export.cli:seg_export",
    "seg-infer": "segship.runtime.cli:seg_infer",
    "seg-check": "segship.runtime.check_cli:seg_check",
    "seg-bench": "segship.benchmarks.cli:seg_bench",
}
"""Where the click command of each program is."""

_OPENING: Final = """\
# Commands

What each command's `--help` says, on one page; `make docs` writes it from the commands themselves. `--help` never loads
an engine or PyTorch. [Completion by the shell](shell-completion.md) knows all of it.

A size is HEIGHTxWIDTH in pixels. Results go to stdout, progress, warnings and errors to stderr. The exit status is 0
where all is done, 1 after an error or a check that failed, 2 after wrong use, 3 where something was reported and left
out, 130 after Ctrl-C.

{contents}
"""


def reference() -> str:
    """Return the page as Markdown."""
    commands = {name: command_at(place) for name, place in COMMANDS.items()}
    contents = "\n".join(f"- [`{name}`](#{name}): {_first_sentence(command)}" for name, command in commands.items())
    sections = [_OPENING.format(contents=contents)]
    for name, command in commands.items():
        sections += _sections(name, command, parent=None)
        if name == "seg-infer":
            sections.append(f"What `--set` takes, as `seg-infer --set help` prints it:\n\n{_fenced(describe_knobs())}")
    return "\n".join(sections)


def command_at(place: str) -> click.Command:
    """Return the click command at MODULE:NAME."""
    module, _, name = place.partition(":")
    command = getattr(importlib.import_module(module), name)
    assert isinstance(command, click.Command)
    return command


def _sections(name: str, command: click.Command, parent: click.Context | None) -> Iterator[str]:
    """Yield the section of a command, then those of what it is a group of."""
    context = command.context_class(command, parent, info_name=name, **command.context_settings)
    usage = f"{context.command_path} {' '.join(command.collect_usage_pieces(context))}"
    options = [option for option in command.params if isinstance(option, click.Option)]
    rows = [_row(*record) for option in options if (record := option.get_help_record(context))]
    yield "\n".join(
        [
            f"{'##' if parent is None else '###'} {context.command_path}\n",
            _fenced(usage),
            _paragraphs(command),
            "| option | what it does |\n|---|---|",
            *rows,
            "",
        ]
    )
    if isinstance(command, click.Group):
        for own_name in command.list_commands(context):
            own = command.get_command(context, own_name)
            assert own is not None
            yield from _sections(own_name, own, context)


def _row(option: str, text: str) -> str:
    return f"| `{_cell(option)}` | {_cell(text)} |"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", r"\|")


def _paragraphs(command: click.Command) -> str:
    return inspect.cleandoc(command.help or "").replace("\b\n", "") + "\n"


def _first_sentence(command: click.Command) -> str:
    return " ".join((command.help or "").split()).split(". ")[0].rstrip(".")


def _fenced(text: str) -> str:
    return f"```text\n{text}\n```\n"


if __name__ == "__main__":
    write_text(PAGE, reference())
