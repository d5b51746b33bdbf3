import dataclasses

import pytest

from segship.runtime.certificate import Certificate, Proof

ORT = Proof("ort", "ONNX Runtime 1.31.1", "cpu", "fp32", "a gate", True, 1e-6, 1e-7, 1.0, 1.0, 0, 1.0)
CERTIFICATE = Certificate(
    content_sha256="ab" * 32,
    reference="PyTorch 2.13.0 on cpu",
    pictures="3 random, 8 real",
    absolute_tolerance=1e-4,
    relative_tolerance=1e-3,
    rows=(
        ORT,
        dataclasses.replace(ORT, device="cuda:0"),
        dataclasses.replace(ORT, backend="opencv", engine="OpenCV 5.0.0", passes=False),
        dataclasses.replace(ORT, backend="opencv", engine="OpenCV 4.14.0"),
    ),
)


@pytest.mark.parametrize(
    ("wanted", "row"),
    [
        (("ort", "ONNX Runtime 1.31.1", "cpu", "fp32"), 0),
        (("ort", "ONNX Runtime 1.40.0", "cpu", "fp32"), 0),
        (("ort", "ONNX Runtime 1.31.1", "cuda:1", "fp32"), 1),
        (("opencv", "OpenCV 4.12.0", "cpu", "fp32"), 3),
        (("ort", "ONNX Runtime 2.0.0", "cpu", "fp32"), None),
        (("ort", "ONNX Runtime 1.31.1", "cpu", "fp16"), None),
        (("opencv", "OpenCV 5.0.0", "cpu", "fp32"), None),  # it was compared, and did not pass
        (("opencv", "OpenCV 4.14.0", "cuda:0", "fp32"), None),
        (("openvino", "OpenVINO 2026.4.1", "cpu", "fp32"), None),
    ],
)
def test_a_proof_holds_for_its_engines_generation_kind_of_device_and_precision(
    wanted: tuple[str, str, str, str], row: int | None
) -> None:
    assert CERTIFICATE.proof(*wanted) is (None if row is None else CERTIFICATE.rows[row])
