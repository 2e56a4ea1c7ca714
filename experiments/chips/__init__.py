"""The chips of a run's network, whichever engine computes them: AIHWKit's, or those in JAX.

- `protocol`: what stages and studies ask of a network and its chips.
- `in_torch`, `in_jax`: the two of them.
- `opening`: that of a run.
"""
