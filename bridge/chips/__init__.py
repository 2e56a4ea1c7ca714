"""Analog chips: what they are made of, programming, execution, prediction, files.

- what a chip is: `profiles`, `memories` (PCM and others), `weight_noise`, `adc`, `configuration`
- how it is made: `conversion`, `programming`, `streams` (its random numbers), `files`
- how it runs: `execution`, `tiles`, `images`, `prediction`
- what makes up for its errors: `recalibration`, `logit_fit`, `averaging`
- what is known of it: `layers`, `moments`
"""

from jaxcurv import faces

__getattr__, __dir__, __all__ = faces.attach(__name__, __file__, extra="bridge")
