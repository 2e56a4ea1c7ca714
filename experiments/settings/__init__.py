"""The settings of an experiment, and presets of them."""
