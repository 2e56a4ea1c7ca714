"""Memory devices: what a crossbar's conductances are made of, with their physical settings.

Each is one of AIHWKit's phenomenological noise models, fitted to measured devices. All times are
seconds after programming has ended. Importable without torch: a method that needs AIHWKit imports
it. A device of your own satisfies `protocol.Memory`; one that ships has a module here, and a place
in `_KINDS` of `bridge.chips.profiles`, by which files name it.

`moments` of a memory gives mean and variance of the weights of a tile: `programmed` has the
distributions of programmed weights, `drifting`, `wan2022_moments` and `cmo_moments` what becomes of
them, `expectations` the closed forms, `measured` the constants.
"""
