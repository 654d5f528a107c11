"""orchd: train, share, average and serve LoRA adapters without a server."""

__version__ = "0.1.0"
