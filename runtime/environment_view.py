"""What works on this machine, as tables for a terminal."""

import sys

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from segship.runtime.environment import Environment


def environment_view(environment: Environment) -> RenderableType:
    """Return it as tables for a terminal."""
    facts = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for name, value in _facts(environment):
        facts.add_row(name, Text(value))
    engines = Table(box=None, padding=(0, 2, 0, 0), header_style="")
    for title in ("engine", "device", "works", "version"):
        engines.add_column(title, no_wrap=True)
    engines.add_column("")
    for state in environment.engines:
        verdict = {True: Text("yes", "green"), False: Text("no", "red"), None: Text("untried")}[state.works]
        versions = ", ".join(package.rpartition(" ")[2] for package in state.packages) or "–"
        detail = state.detail.partition("; ")[0]  # what follows is advice for those who wanted to run something
        engines.add_row(state.backend, state.device, verdict, versions, Text(detail))
    return Group(facts, Text(""), engines)


def install_lines(environment: Environment) -> list[str]:
    """Return the lines that install what is missing, each to be printed as long as it is: a break would be copied."""
    lines = [f"{state.backend} on {state.device}:  {state.install}" for state in environment.engines if state.install]
    return ["", "To install what is missing:", *lines] if lines else []


def _facts(environment: Environment) -> list[tuple[str, str]]:
    cpu = environment.cpu
    quota = "" if cpu.quota is None else f", quota {cpu.quota:g}"
    gpus = [
        f"{gpu.name}, compute capability {gpu.compute_capability}, {gpu.memory_mb} MB, driver {gpu.driver}"
        for gpu in environment.gpus
    ]
    return [
        ("segship", environment.segship),
        ("Python", f"{environment.python}, {sys.executable}"),
        ("platform", environment.platform),
        ("CPU", f"{cpu.name}, {cpu.usable} of {cpu.cores} cores usable{quota}"),
        ("", ", ".join(cpu.features) or "no set of instructions for networks is known of it"),
        *(("GPU", gpu) for gpu in gpus or ["no NVIDIA GPU and driver found"]),
    ]
