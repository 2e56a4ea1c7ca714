"""Weights between Flax and PyTorch, checkpoints, and the torch ResNet."""
