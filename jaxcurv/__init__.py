"""Per-sample input loss curvature in JAX: which inputs does a trained model hold most loosely?

The names in `__init__.pyi` are imported when first used.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
