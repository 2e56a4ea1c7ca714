"""From trained weights to analog chips, their predictions and their failures.

The names in `__init__.pyi` are imported when first used, so that the failure analysis needs no
torch.
"""

from typing import Any

import lazy_loader

from jaxcurv.extras import needs

_attribute, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> Any:
    with needs(f"bridge.{name}", "bridge"):
        return _attribute(name)
