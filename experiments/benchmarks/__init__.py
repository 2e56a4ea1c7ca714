"""Speed of the engine and of the chips, measured as ratios."""
