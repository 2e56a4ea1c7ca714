"""How a layer's weight matrix is split among tiles, as AIHWKit splits it."""

from collections.abc import Sequence
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from bridge.chips.profiles import TILE_SIZE

Tile = Float[Array, "rows columns"]
"""The weights of one tile, or something for each of them."""


def splits(size: int) -> tuple[tuple[int, int], ...]:
    """Where the parts of `size` rows or columns begin and end, the longer ones first."""
    count = -(-size // TILE_SIZE)
    base, extra = divmod(size, count)
    ends = np.cumsum([base + (part < extra) for part in range(count)]).tolist()
    return tuple(zip([0, *ends[:-1]], ends, strict=True))


@dataclass(frozen=True)
class Grid:
    """The tiles of one layer.

    Attributes:
      outputs: rows of the weight matrix.
      inputs: columns of the weight matrix.
    """

    outputs: int
    inputs: int

    @property
    def rows(self) -> tuple[tuple[int, int], ...]:
        """Outputs of each row of tiles."""
        return splits(self.outputs)

    @property
    def columns(self) -> tuple[tuple[int, int], ...]:
        """Inputs of each column of tiles."""
        return splits(self.inputs)

    @property
    def count(self) -> int:
        """Tiles."""
        return len(self.rows) * len(self.columns)

    @property
    def shapes(self) -> tuple[tuple[int, int], ...]:
        """Rows and columns of each tile, column by column of tiles."""
        return tuple((b - a, d - c) for c, d in self.columns for a, b in self.rows)

    def tiles(self, matrix: Float[Array, "outputs inputs"]) -> list[Tile]:
        """The tiles, column by column of tiles."""
        return [matrix[a:b, c:d] for c, d in self.columns for a, b in self.rows]

    def joined(self, tiles: Sequence[Tile]) -> Float[Array, "outputs inputs"]:
        """The weight matrix of its tiles."""
        height = len(self.rows)
        columns = [tiles[i : i + height] for i in range(0, len(tiles), height)]
        return jnp.concatenate([jnp.concatenate(one) for one in columns], axis=1)

    def by_output(
        self, values: Sequence[Float[Array, "#rows"] | Float[Array, ""]]
    ) -> Float[Array, "columns outputs"]:
        """A value for each tile, or for each of its rows, as one for each output of each column."""
        spread = [
            jnp.broadcast_to(one, (rows,))
            for one, (rows, _) in zip(values, self.shapes, strict=True)
        ]
        height = len(self.rows)
        columns = [spread[i : i + height] for i in range(0, len(spread), height)]
        return jnp.stack([jnp.concatenate(one) for one in columns])
