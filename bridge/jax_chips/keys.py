"""The random key of a chip in JAX that is named by a seed and a label."""

import zlib

import jax

from bridge.checks import require_stream


def chip_key(seed: int, stream: str | None) -> jax.Array:
    """`jax.random.key(seed)`, with the label's CRC-32 folded in where there is one.

    Raises:
      ValueError: the label is no text, or empty.
    """
    key, label = jax.random.key(seed), require_stream(stream)
    return key if label is None else jax.random.fold_in(key, zlib.crc32(label.encode()))
