"""Which samples to run on the digital model: curves, thresholds, a live router."""
