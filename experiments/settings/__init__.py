"""The settings of an experiment, each a flag of the command line, and presets of them."""
