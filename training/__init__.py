"""Networks, datasets, metrics and the trainer. Datasets and metrics work without PyTorch."""
