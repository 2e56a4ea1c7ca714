"""The tables of a run: outcomes, failure rates, predictors, routing."""
