from pathlib import Path

import pytest

from segship.benchmarks.model_names import distinct_names


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["nets/a.onnx"], ["a.onnx"]),
        (["nets/a.onnx", "nets/b.onnx"], ["a.onnx", "b.onnx"]),
        (["x/a/m.onnx", "x/b/m.onnx", "c.onnx"], ["a/m.onnx", "b/m.onnx", "c.onnx"]),
        (["x/a/m.onnx", "y/a/m.onnx", "z/m.onnx"], ["x/a/m.onnx", "y/a/m.onnx", "z/m.onnx"]),
        (["m.onnx", "a/m.onnx"], ["m.onnx", "a/m.onnx"]),
        (["/m.onnx", "/a/m.onnx"], ["/m.onnx", "a/m.onnx"]),
        (["a/m.onnx", "./a/m.onnx", "a/m.onnx"], ["m.onnx", "m.onnx"]),
    ],
)
def test_a_name_is_the_shortest_end_that_no_other_path_has(paths: list[str], names: list[str]) -> None:
    found = distinct_names(paths)
    assert found == dict(zip(dict.fromkeys(paths), names, strict=True))
    assert distinct_names(map(Path, paths[:2])) == distinct_names(str(Path(path)) for path in paths[:2])
