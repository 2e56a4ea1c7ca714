"""From trained weights to analog chips, their predictions and their failures.

The names in `__init__.pyi` are imported when first used, so that the failure analysis needs no
torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
