"""Our calibrated ADC ranges beside those that CrossSim calibrated for its ResNet-20.

`python -m tools.crosssim_ranges --weights FILE.pth --limits FILE.npy`, with resnet20_cifar10.pth
and adc_limits_ResNet20_balanced.npy of github.com/sandialabs/cross-sim. CrossSim folds BatchNorm
into the convolutions, and its unit is the largest weight times the limit of the layer's inputs.
Those limits are not in the file: in their place stands the quantile 0.9999 of the inputs'
magnitudes.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

import bridge
from jaxcurv import data
from tools.published_networks import CrossSimResNet

_INPUTS = 0.9999
_TAIL = 0.0005
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def compare(network: CrossSimResNet, limits: npt.NDArray, images: npt.NDArray) -> pd.DataFrame:
    """One row a layer: CrossSim's limits, the outputs' quantiles in its unit, and our range.

    Args:
      network: with its weights, in evaluation mode; its BatchNorms are folded in place.
      limits: CrossSim's, float `[layer, 2]`, low and high.
      images: normalised training images, float32 `[n, height, width, channel]`.

    Returns:
      layer, low, high (CrossSim's), low_quantile, high_quantile (outputs' 0.0005 and 0.9995),
      ours (a layer's widest tile, percentile 100) and tiles.
    """
    fold(network)
    chip = bridge.program(network, bridge.PROFILES["adc"], seed=0, calibration=images)
    ours: dict[str, list[float]] = {}
    for tile, bound in chip.out_bounds.items():
        ours.setdefault(tile.partition(".analog_module")[0], []).append(float(bound))
    rows = []
    for (name, (inputs, outputs)), (low, high) in zip(
        passing(network, images).items(), limits, strict=True
    ):
        weight = network.get_parameter(f"{name}.weight")
        unit = float(weight.detach().abs().max()) * _quantile(inputs.abs(), [_INPUTS])[0]
        below, above = _quantile(outputs, [_TAIL, 1 - _TAIL]) / unit
        rows.append((name, low, high, below, above, max(ours[name]), len(ours[name])))
    columns = ["layer", "low", "high", "low_quantile", "high_quantile", "ours", "tiles"]
    return pd.DataFrame(rows, columns=columns)


def fold(network: CrossSimResNet) -> None:
    """Folds each BatchNorm into the convolution before it."""
    pairs: list[tuple[nn.Module, str, str]] = [(network, "conv1", "bn1")]
    for block in (*network.res1, *network.res2, *network.res3):
        pairs += [(block, "conv1", "bn1"), (block, "conv2", "bn2")]
        if len(block.downsample):
            pairs.append((block.downsample, "0", "1"))
    for parent, convolution, norm in pairs:
        folded = fuse_conv_bn_eval(getattr(parent, convolution), getattr(parent, norm))
        setattr(parent, convolution, folded)
        setattr(parent, norm, nn.Identity().eval())


def passing(network: nn.Module, images: npt.NDArray) -> dict[str, tuple[Tensor, Tensor]]:
    """Inputs of each convolution and linear layer and its outputs without bias, by name."""
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def remember(name: str, inputs: tuple[Tensor], outputs: Tensor) -> None:
        bias = network.get_parameter(f"{name}.bias").reshape(-1, *[1] * (outputs.ndim - 2))
        seen[name] = inputs[0], outputs - bias

    layers = [(n, m) for n, m in network.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    hooks = [
        layer.register_forward_hook(lambda _, given, out, name=name: remember(name, given, out))
        for name, layer in layers
    ]
    with torch.no_grad():
        network(torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))))
    for hook in hooks:
        hook.remove()
    return {name: seen[name] for name, _ in layers}


def _quantile(values: Tensor, at: Sequence[float]) -> npt.NDArray:
    return np.quantile(values.detach().numpy(), at)


def main() -> None:
    """Prints the table and how far the two go together."""
    flags = argparse.ArgumentParser(description=__doc__)
    flags.add_argument("--weights", type=Path, required=True)
    flags.add_argument("--limits", type=Path, required=True)
    flags.add_argument("--data-dir", type=Path)
    flags.add_argument("--images", type=int, default=256)
    given = flags.parse_args()
    network = CrossSimResNet().eval()
    network.load_state_dict(bridge.weights.load_checkpoint(given.weights).state_dict)
    train = data.with_labels(data.load("cifar10", given.data_dir).train)
    first = data.Chosen(train, np.argsort(train.indices)[: given.images])
    images = data.Normalisation(_MEAN, _STD).apply(data.read(first).images)
    table = compare(network, np.load(given.limits), images)
    print(table.round(2).to_string(index=False))
    width, wide = table["high"] - table["low"], table["high_quantile"] - table["low_quantile"]
    largest = table[["low", "high"]].abs().max(axis=1)
    ratio = (table["ours"] / largest)[table["tiles"] == 1]
    print(
        f"Spearman's rho over {len(table)} layers: widths and quantiles "
        f"{spearmanr(width, wide).statistic:.3f}, limits and our ranges "
        f"{spearmanr(largest, table['ours']).statistic:.3f}; our range over CrossSim's larger "
        f"limit, {len(ratio)} layers of one tile: median {ratio.median():.2f}, {ratio.min():.2f} "
        f"to {ratio.max():.2f}"
    )


if __name__ == "__main__":
    main()
