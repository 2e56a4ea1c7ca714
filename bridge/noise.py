"""The random streams of a chip, and weight noise frozen into it."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from aihwkit.simulator.tiles.inference_torch import TorchInferenceTile


def stream_seed(seed: int, *key: object) -> int:
    """Seed of the stream that `key` names on chip `seed`.

    A hash, so that a stream depends neither on which others are drawn nor on their order: this is
    what lets profiles share one programmed chip.
    """
    digest = hashlib.sha256(repr((seed, *key)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


@contextmanager
def stream(seed: int, *key: object) -> Iterator[None]:
    """Within it, torch's global CPU draws come from the named stream; afterwards all is as before.

    For code that takes no generator of its own. Other devices' generators are not touched.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(stream_seed(seed, *key))
        yield


def add_weight_noise(tile: TorchInferenceTile, sigma: float, *, seed: int, name: str) -> None:
    """Adds `sigma * max|W| * N(0, 1)` to each weight that the tile holds, in place.

    `W` are the target weights, so the noise is the same whether or not they were programmed
    imperfectly. It is drawn once and stays: static noise, the same for every operation.

    Args:
      tile: a tile on the CPU.
      sigma: standard deviation relative to the largest target weight.
      seed: the chip.
      name: the tile within the chip.
    """
    weights = tile.tile.get_weights()
    programmed_from = tile.reference_combined_weights
    target = weights if programmed_from is None else programmed_from
    generator = torch.Generator().manual_seed(stream_seed(seed, "weight noise", name))
    noise = torch.randn(weights.shape, generator=generator)
    tile.tile.set_weights(weights + sigma * target.abs().max() * noise)
