"""How a layer's weight matrix is split among tiles, as AIHWKit splits it."""

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

TILE_SIZE = 512
"""Rows and columns of a crossbar tile; larger layers are split evenly."""


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
    def inside(self) -> Bool[np.ndarray, "tiles rows columns"]:
        """Which places of the stacked tiles hold a weight of their own."""
        shapes = [(b - a, d - c) for c, d in self.columns for a, b in self.rows]
        height, width = (max(sizes) for sizes in zip(*shapes, strict=True))
        rows, columns = np.arange(height)[:, None], np.arange(width)
        return np.stack([(rows < r) & (columns < c) for r, c in shapes])

    def stack(self, matrix: Float[Array, "outputs inputs"]) -> Float[Array, "tiles rows columns"]:
        """The tiles, column by column of tiles; the smaller ones filled up with their last row and
        column, which changes neither their largest nor their smallest weight."""
        height, width = self.inside.shape[1:]
        tiles = []
        for first, last in self.columns:
            for start, stop in self.rows:
                missing = ((0, height - (stop - start)), (0, width - (last - first)))
                tiles.append(jnp.pad(matrix[start:stop, first:last], missing, mode="edge"))
        return jnp.stack(tiles)

    def unstack(self, tiles: Float[Array, "tiles rows columns"]) -> Float[Array, "outputs inputs"]:
        """The weight matrix of stacked tiles."""
        found = iter(tiles)
        columns = []
        for first, last in self.columns:
            parts = [next(found)[: stop - start, : last - first] for start, stop in self.rows]
            columns.append(jnp.concatenate(parts))
        return jnp.concatenate(columns, axis=1)

    def by_output(self, values: Float[Array, " tiles"]) -> Float[Array, "columns outputs"]:
        """A value for each tile, or for each of its rows `[tiles, rows]`, as one for each output
        of each column of tiles."""
        if values.ndim == 1:
            values = jnp.broadcast_to(values[:, None], (len(values), self.inside.shape[1]))
        found = iter(values)
        return jnp.stack(
            [
                jnp.concatenate([next(found)[: stop - start] for start, stop in self.rows])
                for _ in self.columns
            ]
        )
