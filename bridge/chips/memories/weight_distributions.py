"""How programmed weights of pairs of devices are distributed, and the largest of a tile.

A device of target conductance g is programmed to max(0, g + sigma(g) z), z a standard normal, and a
weight is a sum of such conductances with signs. Its distribution is their convolution, here on a
lattice of an eighth of the weight's spread. A device's mass between two nodes goes to both so that
its mean stays; afterwards the nodes are moved so that mean and variance of the weight are the
exact ones (`expectations.rectified`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.special import ndtr

from bridge.chips.memories.conductances import MappedPairs, Pairs, WeightMapping
from bridge.chips.memories.expectations import Floats, density, rectified
from bridge.chips.memories.pairs import factors_of, split

_STEP = 1 / 8  # in units of a weight's spread
_NODES = 128  # to 8 spreads on either side
_UNIFORM = 513  # targets
_NEAR = np.geomspace(1e-4, 0.1, 30)  # of more targets, from where a conductance begins to grow
_LEGENDRE = np.polynomial.legendre.leggauss(3)


@dataclass(frozen=True)
class Distributions:
    """Distributions of a tile's programmed weights by target, the largest target being 1.

    Attributes:
      targets: `[targets]`, from -1 to 1.
      conductances: each device's target, microsiemens; positive and negative of each pair in turn.
      currents: what a microsiemens of each device adds to a weight.
      weights: values that a weight takes, `[targets, nodes]`, in units of the largest target.
      mass: their probabilities, `[targets, nodes]`.
    """

    targets: Floats
    conductances: tuple[Floats, ...]
    currents: tuple[float, ...]
    weights: Floats
    mass: Floats

    @cached_property
    def _magnitudes(self) -> tuple[Floats, Floats]:
        """Magnitudes `[m]`, and log P(|weight| <= magnitude), `[targets, m]`."""
        top = self.weights[np.abs(self.targets) == 1].ravel()
        values = np.concatenate([np.linspace(0, np.abs(self.weights).max(), 600), np.abs(top)])
        magnitudes = np.unique(values)
        gaps = np.diff(self.weights, append=2 * self.weights[:, -1:] - self.weights[:, -2:-1])
        ends = self.weights + gaps / 2  # a node's mass reaches half-way to the next
        total = np.cumsum(self.mass, 1)
        found = [
            np.interp(magnitudes, x, p, left=0, right=1) - np.interp(-magnitudes, x, p, 0, 1)
            for x, p in zip(ends, total, strict=True)
        ]
        return magnitudes, np.log(np.maximum(found, 1e-300))

    def largest(self, targets: Floats) -> tuple[Floats, Floats]:
        """The largest magnitude among a tile's other weights: 3 nodes by target, and their weights.

        P(max <= x) is the product of the weights' distributions without one's own; the nodes are
        Gauss-Legendre's in this probability.

        Args:
          targets: of the tile, the largest 1.
        """
        magnitudes, logs = self._magnitudes
        others = np.minimum(counts(self.targets, targets) @ logs - logs, 0.0)
        nodes, weights = _LEGENDRE
        return quantiles(magnitudes, others, (nodes + 1) / 2), weights / 2

    def at(self, targets: Floats, values: Floats) -> Floats:
        """Values by target, at the targets of a tile."""
        return np.interp(targets, self.targets, values)


def distributions(
    mapping: WeightMapping, g_max: float, spread: Callable[[Floats], Floats]
) -> Distributions:
    """Distributions of weights by target.

    Args:
      mapping: weights to conductances.
      g_max: conductance of the largest weight, microsiemens.
      spread: sigma, of conductances.
    """
    breaks = np.array([-1.0, 1.0, *_breaks(mapping)])
    _, deviations = _deviations(mapping, g_max, spread, breaks)
    around = np.linspace(-6, 6, 49) * deviations[:, None]
    near = breaks[:, None] + np.concatenate([_NEAR, -_NEAR])
    chosen = [np.linspace(-1, 1, _UNIFORM), (breaks[:, None] + around).ravel(), near.ravel()]
    targets: Floats = np.unique(np.clip(np.concatenate(chosen), -1, 1))
    conductances, scale = split(mapping, targets, g_max, largest=1.0)
    currents = tuple(
        sign * factor / float(scale) for factor in factors_of(mapping) for sign in (1, -1)
    )
    spreads, deviations = _deviations(mapping, g_max, spread, targets)
    unit = np.maximum(deviations, 1e-12)[:, None]
    mean = np.zeros(len(targets))
    variance = np.zeros(len(targets))
    spectrum = np.ones((len(targets), _NODES // 2 + 1), complex)
    for g, sigma, current in zip(conductances, spreads, currents, strict=True):
        first, second = rectified(g, sigma)
        mean += current * first
        variance += current**2 * np.maximum(second - first**2, 0.0)
        size = abs(current) / unit
        transformed = np.fft.rfft(_masses(size * g[:, None], size * sigma[:, None]), axis=1)
        spectrum *= transformed if current > 0 else transformed.conj()
    mass = np.fft.fftshift(np.maximum(np.fft.irfft(spectrum, _NODES, axis=1), 0.0), axes=1)
    mass /= mass.sum(1, keepdims=True)
    offsets = np.broadcast_to(np.arange(-_NODES // 2, _NODES // 2) * _STEP, mass.shape)
    centre = (mass * offsets).sum(1, keepdims=True)
    width = np.sqrt((mass * (offsets - centre) ** 2).sum(1, keepdims=True))
    weights = mean[:, None] + (offsets - centre) / width * np.sqrt(variance)[:, None]
    return Distributions(targets, conductances, currents, weights, mass)


def counts(nodes: Floats, values: Floats) -> Floats:
    """How many values each node stands for, a value between two in parts to both."""
    values = values.ravel()
    right = np.clip(np.searchsorted(nodes, values), 1, len(nodes) - 1)
    share = np.clip((values - nodes[right - 1]) / (nodes[right] - nodes[right - 1]), 0.0, 1.0)
    found = np.bincount(right, share, len(nodes))
    return np.asarray(found + np.bincount(right - 1, 1 - share, len(nodes)), np.float64)


def quantiles(values: Floats, logs: Floats, probabilities: Floats) -> Floats:
    """Where distributions reach probabilities, `[rows, probabilities]`.

    Args:
      values: rising, `[values]`.
      logs: logarithms of the distributions there, `[rows, values]`.
      probabilities: between 0 and 1.
    """
    found = []
    for probability in probabilities:
        right = np.clip((logs < np.log(probability)).sum(1), 1, len(values) - 1)
        rows = np.arange(len(logs))
        low, high = np.exp(logs[rows, right - 1]), np.exp(logs[rows, right])
        share = np.clip((probability - low) / np.maximum(high - low, 1e-12), 0.0, 1.0)
        found.append(values[right - 1] + share * (values[right] - values[right - 1]))
    return np.stack(found, 1)


def _breaks(mapping: WeightMapping) -> list[float]:
    """Targets at which a conductance begins or ends to grow, the ends of the range left out."""
    if isinstance(mapping, Pairs):
        filled = np.cumsum(mapping.factors)[:-1] / sum(mapping.factors)
        return [0.0, *filled.tolist(), *(-filled).tolist()]
    if isinstance(mapping, MappedPairs):
        return np.linspace(-1, 1, len(mapping.conductances[0]))[1:-1].tolist()
    return [0.0]


def _deviations(
    mapping: WeightMapping, g_max: float, spread: Callable[[Floats], Floats], targets: Floats
) -> tuple[list[Floats], Floats]:
    """Spreads of the devices in microsiemens, and that of the weight were none of them cut at 0."""
    conductances, scale = split(mapping, targets, g_max, largest=1.0)
    spreads = [np.abs(spread(g)) for g in conductances]
    factors = np.repeat(factors_of(mapping), 2)
    squares = sum((f * one) ** 2 for f, one in zip(factors, spreads, strict=True))
    return spreads, np.sqrt(squares) / float(scale)


def _masses(g: Floats, sigma: Floats) -> Floats:
    """Probabilities of max(-g, sigma z) on the lattice, in the order of a Fourier transform.

    A node's is the second difference of E[max(0, x - X)] = G(x) - G(-g), which is 0 up to -g, with
    G(x) = x Phi(x / sigma) + sigma phi(x / sigma).
    """
    sigma = np.maximum(sigma, 1e-9)
    x: Floats = np.arange(-_NODES // 2 - 1, _NODES // 2 + 1) * _STEP

    def below(x: Floats) -> Floats:
        return x * ndtr(x / sigma) + sigma * density(x / sigma)

    integral = np.where(x > -g, below(x) - below(-g), 0.0)
    return np.fft.ifftshift(np.diff(integral, 2, axis=1) / _STEP, axes=1)
