"""Which samples fail and what predicts it: arrays in, tables out; needs neither torch nor JAX."""
