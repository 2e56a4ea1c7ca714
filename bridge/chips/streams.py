"""Random streams of a chip: one for each purpose, tile, layer and sample."""

import hashlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from bridge.checks import require_stream

_WORD = 2**64 - 1


def stream_seed(seed: int, *key: object) -> int:
    """Seed of the stream that `key` names on chip `seed`.

    A hash, so that a stream depends neither on which others are drawn nor on their order: this is
    what lets profiles share one programmed chip.
    """
    digest = hashlib.sha256(repr((seed, *key)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def root_seed(seed: int, label: str | None) -> int:
    """Seed of everything that a chip draws: its own, or a hash of it and of a label.

    Raises:
      ValueError: the label is no text, or empty.
    """
    return seed if require_stream(label) is None else stream_seed(seed, "labelled", label)


@contextmanager
def stream(seed: int, *key: object, device: str | torch.device = "cpu") -> Iterator[None]:
    """Within it, torch's global draws come from the named stream; afterwards all is as before.

    For code that takes no generator of its own.

    Args:
      seed: the chip.
      key: what is drawn.
      device: where, besides the CPU.
    """
    device = torch.device(device)
    on_cpu = device.type == "cpu"
    # torch.manual_seed seeds every device, and formats the call stack for each that is not there.
    seeded = torch.default_generator.manual_seed if on_cpu else torch.manual_seed
    with torch.random.fork_rng(devices=[] if on_cpu else [device]):
        seeded(stream_seed(seed, *key))
        yield


class SharedRows(ValueError):
    """A layer's rows do not belong to the samples of a batch one after the other."""


class SampleNoise:
    """Standard normals that belong to a chip's seed, a layer, a sample and a read of the chip.

    Attributes:
      seed: the chip.
      read: which read of the chip is being computed, from 0.
      indices: the samples of the batch that is being computed.
      drawn: layers that have drawn for it, in order, and their numbers of rows.
    """

    def __init__(self, seed: int):
        self.seed, self.read = seed, 0
        self.indices: list[int] = []
        self.drawn: list[tuple[str, int]] = []
        self._calls: Counter[str] = Counter()

    def begin(self, indices: list[int]) -> None:
        """A forward pass of these samples begins."""
        self.indices, self.drawn = indices, []
        self._calls.clear()

    def key(self, *key: object) -> tuple[object, ...]:
        """The stream's key of noise in this read; the first read's is as it was before there were
        several."""
        return ("operation", *key, *(["read", self.read] if self.read else []))

    def normals(self, name: str, shape: tuple[int, ...], device: torch.device) -> torch.Tensor:
        """Draws of one call of a layer; float32 `shape`, `[rows, ...]`.

        The values depend on the kind of device, not on the batch. A sample may have several rows,
        one after the other.

        Raises:
          SharedRows: the rows cannot be shared out among the samples.
        """
        samples = len(self.indices)
        if samples == 0 or shape[0] % samples:
            raise SharedRows(
                f"layer {name} works on {shape[0]} rows for {samples} samples: noise of each "
                "operation needs as many rows for each sample"
            )
        self.drawn.append((name, shape[0]))
        draws = torch.empty((samples, shape[0] // samples, *shape[1:]), device=device)
        layer = stream_seed(self.seed, *self.key(name, self._calls[name]))
        self._calls[name] += 1
        generator = torch.Generator(device)
        for row, index in zip(draws, self.indices, strict=True):
            generator.manual_seed(_mix(layer, index))
            row.normal_(generator=generator)
        return draws.flatten(0, 1)


def _mix(layer: int, index: int) -> int:
    """A seed for a layer and a sample: the finaliser of SplitMix64 (Steele et al., 2014)."""
    z = (layer + (index + 1) * 0x9E3779B97F4A7C15) & _WORD
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _WORD
    return (z ^ (z >> 31)) >> 1
