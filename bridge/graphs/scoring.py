"""Input loss curvature of a torch module's samples, in one call."""

from typing import TYPE_CHECKING, Any

from torch import nn

from bridge.graphs.conversion import to_jax
from jaxcurv import score_dataset
from jaxcurv.data import as_source
from jaxcurv.data.reading import read_batch
from jaxcurv.engine.losses import cross_entropy

if TYPE_CHECKING:
    import pandas as pd

_EXAMPLES = 4


def score(module: nn.Module, images: Any, labels: Any = None, **options: Any) -> "pd.DataFrame":
    """Scores every sample of a torch module: `to_jax`, then `jaxcurv.score_dataset`.

        scores = bridge.score(module, images, labels)
        scores = bridge.score(module, test_set, out="scores.parquet")

    Args:
      module: in evaluation mode, from inputs to logits `[batch, class]`.
      images: float32 arrays `[batch, height, width, channel]` or tensors `[batch, channel, height,
        width]`, other floating inputs as the module takes them; or, without `labels`, a source of
        samples with their labels, such as a torch data set (see `jaxcurv.data.as_source`).
      labels: classes `[batch]`.
      options: as for `jaxcurv.score_dataset`, such as `estimators`, `out`, `key` or `batch_size`.

    Returns:
      The table of `jaxcurv.score_dataset`: a row a sample with its index, label, prediction, loss,
      gradient norm, the scores of one forward pass, curvature and its standard error.

    Raises:
      TypeError, ValueError: as `to_jax` and `jaxcurv.score_dataset` say.
    """
    if taken := {"params", "checkpoints"} & set(options):
        raise ValueError(
            f"{', '.join(sorted(taken))} cannot be given: the weights are the module's own; score "
            "each checkpoint by itself, or bridge.to_jax and jaxcurv.score_dataset"
        )
    classes = options.get("loss", cross_entropy) is cross_entropy
    samples = images if labels is None else (images, labels)
    source = as_source(samples, keys=options.pop("keys", None), classes=classes)
    if len(source) == 0:
        raise ValueError("nothing to score: there are no samples")
    few = read_batch(source, range(min(_EXAMPLES, len(source))), classes=classes)
    logits_fn, params = to_jax(module, few.images)
    return score_dataset(logits_fn, source, params=params, **options)
