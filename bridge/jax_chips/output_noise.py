"""What converters and noise of each operation add to the variance of a sample's margin."""

from dataclasses import replace

import numpy as np
import pandas as pd

from bridge.checks import require_count
from bridge.jax_chips.chips import Chip
from bridge.jax_chips.prediction import batches_of, samples_of
from jaxcurv.data.adapters import Keys, SourceLike, as_unlabelled
from jaxcurv.progress import progress


def output_noise(
    chip: Chip,
    source: SourceLike,
    *,
    keys: Keys | None = None,
    batch_size: int = 64,
    description: str = "output noise",
) -> pd.DataFrame:
    """The variance of each sample's margin from converters and from noise at each operation.

    To first order around the target parameters, sum over layers and outputs y of (dm/dy)^2 var(y),
    m the largest minus the second largest logit. For a converter var(y) = step^2 / 12, in units of
    the layer's outputs; for weight noise drawn at each operation it is the profile's
    (`WeightNoise`). Rounding errors count as uniform and independent. Not in it: saturation, and
    that a memory's weights differ from the targets (`weight_moments`). Costs about one training
    step a batch.

    Args:
      chip: made by `bridge.analog`; its memory and the noise that is drawn once per chip are left
        out.
      source, keys: as for `bridge.predict`, or an array of images alone: labels are not used.
      batch_size: images at once.
      description: a few words for the progress bar.

    Returns:
      index int64, margin in units of the logits and variance in their square, float64; one row a
      sample, in the source's order: the table of `bridge.output_noise`.

    Raises:
      ValueError: what `predict` refuses, or a margin or variance that is not finite.
    """
    batch_size = require_count("batch_size", batch_size)
    given = samples_of(as_unlabelled(source, keys=keys), None)
    profile = replace(chip.profile, memory=None, wnoise=chip.profile.noise_of_operations)
    exact = replace(chip, profile=profile)
    tables = []
    with progress(len(given), description) as shown:
        for batch, images in batches_of(exact, given, batch_size):
            found = (one[: len(batch.labels)] for one in exact._margins(images))
            margin, variance = (np.asarray(one, np.float64) for one in found)
            indices = np.asarray(batch.indices, np.int64)
            if not (finite := np.isfinite(margin) & np.isfinite(variance)).all():
                raise ValueError(
                    f"the margin or its variance is not finite, first for image "
                    f"{indices[int(finite.argmin())]}; check the weights and the images"
                )
            tables.append(pd.DataFrame({"index": indices, "margin": margin, "variance": variance}))
            shown.update(len(indices))
    return pd.concat(tables, ignore_index=True)
