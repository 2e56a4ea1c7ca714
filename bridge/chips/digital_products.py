"""Layers whose products no tile computes: they stay digital, and the user is told."""

import warnings
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.utils.flop_counter import FlopCounterMode

from bridge.chips.beside_tiles import UNNAMED, Picks
from bridge.chips.mappable import some
from bridge.chips.plain_layers import is_mapped
from bridge.chips.telling import warn_once
from bridge.graphs.products import trilinear_products

_KEPT = "digital_for_their_kind"
_STRICT = "every_product_on_tiles"
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


def remember_digital_products(network: nn.Module, reasons: dict[str, str], strict: bool) -> None:
    """Has a network, and its copies, know what stays digital for what it is, and what may."""
    vars(network)[_KEPT] = dict(reasons)
    vars(network)[_STRICT] = strict


def tell_digital_products(network: nn.Module, images: torch.Tensor) -> None:
    """Warns once of the layers that `remember_digital_products` was given, with their share.

    Args:
      network: with ordinary layers, on the CPU.
      images: what it takes; the first is run.
    """
    reasons: dict[str, str] = vars(network).get(_KEPT, {})
    if reasons:
        counts = _operations(network, images[:1])
        share = _percent(sum(counts.get(path, 0) for path in reasons), counts[""])
        warn_once(
            f"{_listed(reasons)}: digital, with {share}; program(..., strict=True) refuses them, "
            "bridge.coverage lists every product"
        )


def tell_fixed_products(
    network: nn.Module, fixed: Mapping[tuple[str, ...], float], images: torch.Tensor
) -> None:
    """Warns once of products with buffers or other tensors that are fixed, with their share.

    Args:
      network: as for `tell_digital_products`.
      fixed: see `bridge.chips.beside_tiles.Seen`.
      images: what it takes; the first is run.

    Raises:
      ValueError: there are some, and the chip is to have every product on tiles.
    """
    if not fixed:
        return
    found = {name for one in fixed for name in one}
    names = sorted(found - {UNNAMED})
    owners = dict.fromkeys(name.rpartition(".")[0] or name for name in names)
    unnamed = [UNNAMED] if UNNAMED in found else []
    listed = " and ".join([some(names)] * bool(names) + unnamed)
    told = f"the network multiplies with {listed}, no parameters but fixed matrices"
    buffer = "made a buffer (register_buffer) and " if unnamed else ""
    paths = ", ".join(map(repr, owners or ["its name"]))
    cures = (
        "weights that are to be on tiles are a Linear or Conv2d layer's, what is to stay digital "
        f"is {buffer}named, digital_layers=[{paths}]"
    )
    _tell(network, told, cures, sum(fixed.values()), 0.0, images)


def tell_picked_products(
    network: nn.Module, picked: Mapping[tuple[str, ...], Picks], images: torch.Tensor
) -> None:
    """Warns once of products with weights that the input picks, with their share.

    Args:
      network: as for `tell_digital_products`.
      picked: see `bridge.chips.beside_tiles.Seen`.
      images: what it takes; the first is run.

    Raises:
      ValueError: there are some, and the chip is to have every product on tiles.
    """
    if not picked:
        return
    names = sorted({name for one in picked for name in one})
    told = f"the network multiplies with parts of {some(names)} that the input picks"
    cures = (
        "for tiles make each part a Linear or Conv2d layer that is called on the samples which "
        "pick it, or name what is to stay digital, "
        f"digital_layers=[{', '.join(map(repr, names))}]"
    )
    sums = sum(one.sums for one in picked.values())
    products = sum(one.products for one in picked.values())
    _tell(network, told, cures, products, sums, images)


def _tell(
    network: nn.Module,
    told: str,
    cures: str,
    products: float,
    sums: float,
    images: torch.Tensor,
) -> None:
    """Warns once of products that stay digital, or refuses them where none may.

    Args:
      told: what they are, as the beginning of a sentence.
      cures: what to do about them.
      products: their operations that PyTorch counts, for one sample.
      sums: those that it does not count.
      images: what the network takes; the first is run.
    """
    if vars(network).get(_STRICT, False):
        raise ValueError(f"{told}, which no tile computes: {cures}, or leave strict out")
    share = _percent(products + sums, _operations(network, images[:1])[""] + sums)
    warn_once(
        f"{told}: digital, without a chip's noise, with {share}; {cures}; program(..., "
        "strict=True) refuses them"
    )


def tell_distances(network: nn.Module, parameters: list[str]) -> None:
    """Warns once of parameters that distances are taken to without a product.

    Args:
      network: as for `tell_digital_products`.
      parameters: see `bridge.chips.beside_tiles.Seen`.

    Raises:
      ValueError: there are some, and the chip is to have every product on tiles.
    """
    if not parameters:
        return
    told = (
        f"the network takes distances to {some(parameters)}, by the sum of squared or absolute "
        "differences"
    )
    cures = (
        "for tiles write |x|^2 - 2 self.fc(x) + |w|^2 with a Linear layer, or name what is to stay "
        f"digital, digital_layers=[{', '.join(map(repr, parameters))}]"
    )
    _tell_uncounted(network, told, cures)


def tell_filters(network: nn.Module, parameters: list[str]) -> None:
    """Warns once of parameters that filter in the Fourier domain.

    Args:
      network: as for `tell_digital_products`.
      parameters: see `bridge.chips.beside_tiles.Seen`.

    Raises:
      ValueError: there are some, and the chip is to have every product on tiles.
    """
    if not parameters:
        return
    told = (
        f"the network multiplies complex features by {some(parameters)}, number by number, which "
        "is a convolution where they are those of a Fourier transform"
    )
    cures = (
        "for tiles make it a Conv2d layer, or name what is to stay digital, "
        f"digital_layers=[{', '.join(map(repr, parameters))}]"
    )
    _tell_uncounted(network, told, cures)


def _tell_uncounted(network: nn.Module, told: str, cures: str) -> None:
    """As `_tell`, of what is no product by PyTorch's count."""
    if vars(network).get(_STRICT, False):
        raise ValueError(f"{told}, which no tile computes: {cures}, or leave strict out")
    warn_once(
        f"{told}: digital, and no noise reaches these parameters; {cures}; program(..., "
        "strict=True) refuses them"
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


def _trilinear_operations(
    a: torch.Size,
    b: torch.Size,
    c: torch.Size,
    expand_a: Sequence[int],
    expand_b: Sequence[int],
    expand_c: Sequence[int],
    *_: object,
    **__: object,
) -> int:
    """Two for each product of three numbers: of `Bilinear` 2 batch outputs inputs1 inputs2.

    PyTorch counts none of its own.
    """
    return 2 * trilinear_products((a, b, c), (expand_a, expand_b, expand_c))


def _operations(network: nn.Module, images: torch.Tensor) -> dict[str, int]:
    """Floating-point operations of one forward pass by layer, those within it too; "" for all."""
    bilinear = {torch.ops.aten._trilinear: _trilinear_operations}
    counted = FlopCounterMode(display=False, custom_mapping=bilinear)
    with warnings.catch_warnings(), counted as counter:
        warnings.filterwarnings("ignore", "TF32 acceleration")  # of which the flags are said too
        # As the products that they are made of: recurrent layers, and attention.
        with torch.backends.mkldnn.flags(enabled=False), sdpa_kernel(SDPBackend.MATH):
            # Contiguous, as the code's `view` may need them where other kernels run.
            network(images.clone(memory_format=torch.contiguous_format))
    counts = {name: sum(ops.values()) for name, ops in counter.get_flop_counts().items()}
    root = type(network).__name__
    found = {name.removeprefix(f"{root}."): count for name, count in counts.items()}
    return {**found, "": counts.get("Global", 0)}


def _percent(part: float, whole: float) -> str:
    return f"{part / whole if whole else 0.0:.0%} of the network's multiply-accumulates"
