"""Layers whose products no tile computes: they stay digital, and the user is told."""

import warnings
from collections.abc import Callable

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.utils.flop_counter import FlopCounterMode

from bridge.chips.mappable import some
from bridge.chips.plain_layers import is_mapped
from bridge.chips.telling import warn_once

_KEPT = "digital_for_their_kind"
_PRODUCTS = (_ConvNd, nn.RNNBase, nn.RNNCellBase, nn.Bilinear)


def digital_products(model: nn.Module, left: Callable[[str], bool]) -> dict[str, str]:
    """Why PyTorch's own layers that multiply with weights in a way of their own stay digital.

    Args:
      model: digital.
      left: whether the layer at a path is to stay digital anyway.

    Returns:
      The reason by the layer's path. Layers of the user's own classes are not among them.
    """
    return {
        path: reason
        for path, module in model.named_modules()
        if not left(path) and (reason := _reason(module))
    }


def refuse_digital_products(reasons: dict[str, str]) -> None:
    """Refuses them, for a chip that is to have every product on tiles.

    Raises:
      ValueError: there are some; all are named, by reason.
    """
    if reasons:
        raise ValueError(
            f"products that no tile computes: {_listed(reasons)}; replace these layers, name them "
            "in digital_layers, or leave strict out, and they stay digital"
        )


def remember_digital_products(network: nn.Module, reasons: dict[str, str]) -> None:
    """Has a network, and its copies, know what stays digital for what it is."""
    vars(network)[_KEPT] = dict(reasons)


def tell_digital_products(network: nn.Module, images: torch.Tensor) -> None:
    """Warns once of the layers that `remember_digital_products` was given, with their share.

    Args:
      network: with ordinary layers, on the CPU.
      images: what it takes; the first is run.
    """
    reasons: dict[str, str] = vars(network).get(_KEPT, {})
    if reasons:
        share = _share(network, list(reasons), images[:1])
        warn_once(
            f"{_listed(reasons)}: digital, with {share:.0%} of the network's "
            "multiply-accumulates; program(..., strict=True) refuses them, bridge.coverage lists "
            "every product"
        )


def _reason(module: nn.Module) -> str:
    """What no tile does; "" for what tiles do, and for what is no product."""
    own = type(module).__module__.startswith("torch.nn.") or is_mapped(module)
    if not isinstance(module, _PRODUCTS) or not own:
        return ""
    if isinstance(module, nn.RNNBase | nn.RNNCellBase):
        return "recurrent"
    if isinstance(module, nn.Bilinear):
        return "of two inputs"
    assert isinstance(module, _ConvNd)
    if isinstance(module, _ConvTransposeNd):
        return "transposed"
    if module.groups != 1:
        return "grouped"
    if module.padding_mode != "zeros":
        return f"padded by {module.padding_mode}"
    if module.padding == "same" and any(span % 2 for span in _spans(module)):
        return "padded by one more on one side"
    return ""


def _spans(module: _ConvNd) -> list[int]:
    """The sum of what padding='same' adds on both sides, along height and width."""
    sizes = zip(module.dilation, module.weight.shape[2:], strict=True)
    return [dilation * (size - 1) for dilation, size in sizes]


def _listed(reasons: dict[str, str]) -> str:
    """Paths by reason: "12 layers 0.conv, 1.conv and 10 more (grouped)"."""
    found: dict[str, list[str]] = {}
    for path, reason in reasons.items():
        found.setdefault(reason, []).append(path or "at the root")
    return "; ".join(
        f"{'layer' if len(paths) == 1 else f'{len(paths)} layers'} {some(paths)} ({reason})"
        for reason, paths in found.items()
    )


def _share(network: nn.Module, paths: list[str], images: torch.Tensor) -> float:
    """The share of the multiply-accumulates of one forward pass that layers have, in [0, 1]."""
    with warnings.catch_warnings(), FlopCounterMode(display=False) as counter:
        warnings.filterwarnings("ignore", "TF32 acceleration")  # of which the flags are said too
        # As the products that they are made of: recurrent layers, and attention.
        with torch.backends.mkldnn.flags(enabled=False), sdpa_kernel(SDPBackend.MATH):
            network(images.clone())
    counts = {name: sum(ops.values()) for name, ops in counter.get_flop_counts().items()}
    total = counts.get("Global", 0)
    root = type(network).__name__
    of_paths = sum(counts.get(f"{root}.{path}" if path else root, 0) for path in paths)
    return of_paths / total if total else 0.0
