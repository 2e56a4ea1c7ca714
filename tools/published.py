"""The networks of `tools.published_networks`: whose they are, and what is said of them."""

from dataclasses import dataclass

MODULE = "tools.published_networks"
"""Where their factories are, which need PyTorch."""


@dataclass(frozen=True)
class Published:
    """Where a network comes from, and what its authors say of it."""

    name: str
    source: str
    stated_error: float | None
    """Error on the test split of CIFAR-10 in percent; None where none is stated."""


_AKAMASTER = "github.com/akamaster/pytorch_resnet_cifar10"

PUBLISHED = {
    "akamaster_resnet20": Published("ResNet-20", _AKAMASTER, 8.27),
    "akamaster_resnet32": Published("ResNet-32", _AKAMASTER, 7.37),
    "akamaster_resnet56": Published("ResNet-56", _AKAMASTER, 6.61),
    "crosssim_resnet20": Published(
        "ResNet-20 with projections", "github.com/sandialabs/cross-sim", None
    ),
}
"""The networks by the name of their factory, as tables list them."""
