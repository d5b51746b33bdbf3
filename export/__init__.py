"""From a PyTorch checkpoint to an ONNX file that describes itself and is proven to compute the same."""
