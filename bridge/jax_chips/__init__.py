"""Any JAX function on an analog chip: a transformation, without torch or AIHWKit.

`analog` makes a `Chip` of a function and its parameters; the chip programs parameters onto tiles
and computes logits with them, both as pure functions. AIHWKit is the reference for what a chip is.

- `jaxprs`: walks the function's program, finds the products that tiles compute and replaces them.
- `layers`: the products that tiles compute, and the parameters they take.
- `operations`: how a product runs on tiles; `grids`: how its weights are split among them.
- `devices`: how memories program and drift; `programming`: all that happens to a tile's weights.
- `levels`: times and levels of noise as arguments of a compiled program; `normals`: their draws.
- `tiles`: what those of a product compute, and what they may err; `execution`: walks with them.
- `ranges`: those of the converters; `converters`: an ADC.
- `carried`: a chip of `bridge.program` as one of these.
- `moments` of programmed weights, and `output_noise`: what converters add to a margin.
- `prediction`: a chip over a data set; `groups`: many chips, several at once.
- `recalibration`: BatchNorm statistics that a chip measures itself.
- `training_noise`: the weights of a chip that is programmed anew at each step of training.
- `layer_tables`: a chip layer by layer.
- `chips`: the public face; `files`: programmed chips on disk.
"""

from jaxcurv import faces

__getattr__, __dir__, __all__ = faces.attach(__name__, __file__, extra="bridge")
