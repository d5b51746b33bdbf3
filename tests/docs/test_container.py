"""What can be known of the image without building it: docker itself is not there where the tests run."""

import json
import os
import re
import runpy
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any, Final

import pytest

ROOT: Final = Path(__file__).parents[2]
PROJECT: Final[dict[str, Any]] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
DOCKERFILE: Final = re.sub(r"\\\n\s*", "", (ROOT / "docs/Dockerfile").read_text("utf-8"))
LINES: Final = [line.split(" ", 1) for line in DOCKERFILE.splitlines() if line and not line.startswith("#")]


def value_of(instruction: str) -> str:
    (value,) = [rest for name, rest in LINES if name == instruction]
    return value


def test_what_is_copied_is_there_or_is_what_make_wheel_makes() -> None:
    wheel, constraints, _ = value_of("COPY").split()
    assert wheel == f"dist/{PROJECT['name']}-*.whl"
    assert "wheel: .venv/.has-dev ## build sdist and wheel into dist/" in (ROOT / "Makefile").read_text("utf-8")
    assert (ROOT / constraints).is_file()


def test_the_wheel_is_installed_with_an_extra_that_there_is() -> None:
    assert value_of("ARG") == "EXTRAS=cpu"
    assert "cpu" in PROJECT["optional-dependencies"]
    assert '"$(echo /tmp/wheel/segship-*.whl)[$EXTRAS]"' in value_of("RUN")


def test_pip_gets_the_name_of_the_one_wheel_with_its_extra(tmp_path: Path) -> None:
    (tmp_path / "segship-9.9-py3-none-any.whl").touch()
    install = (
        value_of("RUN").split("&&")[0].replace("pip install", "printf '%s\\n'").replace("/tmp/wheel", str(tmp_path))
    )
    done = subprocess.run(
        ["sh", "-euc", install], env=os.environ | {"EXTRAS": "cpu"}, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == f"{tmp_path}/segship-9.9-py3-none-any.whl[cpu]"


def test_the_image_is_of_a_python_that_is_supported_and_a_user_that_is_not_root() -> None:
    assert value_of("FROM") == "python:3.11-slim"
    assert PROJECT["requires-python"] == ">=3.11"
    user, group = map(int, value_of("USER").split(":"))
    assert min(user, group) > 0
    assert f"chown {user}:{group} {value_of('WORKDIR')}" in value_of("RUN")


def test_what_the_image_starts_is_a_command_that_answers() -> None:
    (name,), arguments = json.loads(value_of("ENTRYPOINT")), json.loads(value_of("CMD"))
    module, _, function = PROJECT["scripts"][name].partition(":")
    code = f"import sys; from {module} import {function}; sys.argv = {[name, *arguments]}; {function}()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"Usage: {name}")


@pytest.mark.skipif(sys.platform != "linux", reason="the stated sizes are those on Linux")
def test_the_stated_sizes_are_those_of_the_packages_without_torch() -> None:
    sizes = runpy.run_path(str(ROOT / "docs/lean_size.py"))["lean_sizes"]()
    assert not sizes.keys() & {"torch", "onnx", "safetensors", "matplotlib"}
    stated = "opencv-python-headless", "numpy", "onnxruntime", "pillow"
    page = " ".join((ROOT / "docs/deploy-in-a-container.md").read_text("utf-8").split())
    each_stated = r"OpenCV (\d+), NumPy (\d+), ONNX Runtime (\d+), Pillow (\d+), all others together (\d+)\."
    found = re.search(rf"take \*\*(\d+) MB\*\* .*? {each_stated}", page)
    assert found is not None
    in_all, *each, others = map(int, found.groups())
    assert in_all == sum(each) + others
    assert in_all == pytest.approx(sum(sizes.values()) / 1e6, rel=0.05)
    assert each == pytest.approx([sizes[name] / 1e6 for name in stated], rel=0.05)
