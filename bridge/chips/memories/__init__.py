"""Memory devices: what a crossbar's conductances are made of, with their physical settings.

Each is one of AIHWKit's phenomenological noise models, fitted to measured devices. All times are
seconds after programming has ended. Importable without torch: a method that needs AIHWKit imports
it. A device of your own satisfies `protocol.Memory`; one that ships has a module here, and a place
in `_KINDS` of `bridge.chips.profiles`, by which files name it.

- `pcm`, `reram`: the memories that ship; `cmo`, `wan2022`: AIHWKit's models of two, corrected
- `protocol`: what a memory is (`Memory`), and one that gives moments (`GivesMoments`)
- `conductances`: weight-to-conductance mappings; `pairs`: weights as theirs, and back
- `measured`: the constants
- `pcm_moments`, `wan2022_moments`, `cmo_moments`: mean and variance of the weights of a tile, from
  `weight_distributions` of pairs of devices and the closed forms in `expectations`
"""
