"""Which products of a network a chip's tiles compute, and which stay digital."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import pandas as pd
import torch
from torch import nn

from bridge.chips.digital_products import digital_products
from bridge.chips.equivalents import with_equivalents
from bridge.chips.plain_layers import (
    copy_of,
    fold_parametrizations,
    is_mapped,
    staying_digital,
    without_compilation,
)
from bridge.chips.product_table import ProductRow, product_table
from bridge.chips.profiles import TILE_SIZE
from bridge.chips.tiles import named_tiles
from bridge.graphs.conversion import graph_of
from bridge.graphs.products import Product, products
from jaxcurv.progress import progress


def coverage(model: nn.Module, images: Any, *, digital_layers: Sequence[str] = ()) -> pd.DataFrame:
    """Every matrix product of a forward pass: its size, and whether tiles compute it.

    The products are those of the exported network (`torch.export`): those with weights outside of
    their layer and those of two activations are among them, those of a layer on tiles that is given
    parameters, such as learned queries, and filters in the Fourier domain, which are complex values
    times parameters. What is written out with `*` and a sum has no row. `program` refuses it, but
    for products of a single output, `(x * w).sum(-1)`, and a stack of such, as a depthwise
    convolution by `unfold` is: these stay digital and nothing tells. Distances to parameters have
    no row. `program` warns of sums of squared or absolute differences, and not of other distances
    (`F.huber_loss`), nor of those to one vector at a time.

        table = bridge.coverage(model, images)
        share = table.loc[table["place"] == "analog", "macs"].sum() / table["macs"].sum()

    Args:
      model: digital and in evaluation mode; not changed.
      images: examples, as for `bridge.to_jax`.
      digital_layers: as for `program`.

    Returns:
      One row a layer, operator and weight, in the order in which they run: layer (its path as on a
      chip: PyTorch's attention is four linear layers, and a convolution of one or three dimensions
      has its product in `conv`), operator (PyTorch's name), weights (names of the parameters and
      floating buffers that are a factor of it, as they are, scaled by the input or a part that it
      picks, "" for a product of two activations), calls in a forward pass, macs
      (multiply-accumulates for one sample, all calls), tiles (of at most 512 x 512 that hold the
      weights; 0 where digital), place ("analog" or "digital") and reason (why it is digital).

    Raises:
      ValueError: the model is on tiles already, or what `bridge.to_jax` refuses.
    """
    if named_tiles(model):
        raise ValueError("the model is on tiles already: give the digital one")
    left = staying_digital(model, digital_layers)
    reasons = digital_products(model, left)
    on_chip = staying_digital(model, [*digital_layers, *reasons])
    copied = without_compilation(copy_of(model), on_chip)
    plain = fold_parametrizations(with_equivalents(copied, on_chip), on_chip)
    left = staying_digital(plain, digital_layers)

    def on_tiles(path: str) -> bool:
        return is_mapped(plain.get_submodule(path)) and path not in reasons and not left(path)

    with progress(1, f"products of {type(model).__name__}", "network", side=True) as shown:
        graph, params, example = graph_of(plain, images)
        shape = jax.ShapeDtypeStruct(tuple(example.shape), _dtype(example))
        found = products(graph, params, shape, on_tiles)
        shown.update()
    shapes = {name: tuple(array.shape) for name, array in params.items()}
    parameters = {name for name, _ in plain.named_parameters(remove_duplicate=False)}
    rows: list[ProductRow] = []
    for product in found:
        if product.filters and parameters.isdisjoint(product.weights):
            continue  # a fixed phase, as that of rotary positions, is no weight
        if not set(digital_layers).isdisjoint(product.weights):
            reason = "named in digital_layers"
        else:
            reason = _reason(product, plain, parameters, left, reasons)
        rows.append(
            {
                "layer": product.layer,
                "operator": product.operator,
                "weights": ", ".join(product.weights),
                "macs": product.macs,
                "tiles": 0 if reason else _tiles(shapes[product.weights[0]]),
                "reason": reason,
            }
        )
    return product_table(rows)


def _dtype(example: torch.Tensor) -> Any:
    return np.float32 if example.is_floating_point() else np.int32


def _reason(
    product: Product,
    network: nn.Module,
    parameters: set[str],
    left: Callable[[str], bool],
    reasons: dict[str, str],
) -> str:
    """Why a product is digital; "" where tiles compute it."""
    if product.activations:
        return "two activations"
    layer: Any = network.get_submodule(product.layer)
    alone = len(product.weights) == 1 and not product.scaled
    if is_mapped(layer) and alone and product.layer not in reasons:
        shared = network.get_parameter(product.weights[0]) is layer.weight  # perhaps with others
        if shared and not left(product.layer):
            return ""
    owners = [product.layer, *(name.rpartition(".")[0] for name in product.weights)]
    for owner in owners:
        if owner in reasons:
            return reasons[owner]
        if left(owner):
            return "named in digital_layers"
    if parameters.isdisjoint(product.weights):
        return "a fixed matrix: buffers or constants, no parameters"
    if product.filters:
        return "a filter of complex values"
    if product.picked:
        return "weights that the input picks"
    if product.scaled:
        return "weights that the input scales, which program refuses"
    return "weights outside of their layer, which program refuses"


def _tiles(shape: tuple[int, ...]) -> int:
    out, inputs = shape[0], int(np.prod(shape[1:]))
    return -(-out // TILE_SIZE) * -(-inputs // TILE_SIZE)
