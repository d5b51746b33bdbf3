"""From a PyTorch checkpoint to an ONNX file that describes itself and is checked to compute the same."""

from typing import Final

MIN_OPSET: Final = 11
MAX_OPSET: Final = 23
DEFAULT_OPSET: Final = 17
