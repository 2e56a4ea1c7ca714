"""Training of Flax NNX classifiers."""
