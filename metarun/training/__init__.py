"""The meta-training loop."""
