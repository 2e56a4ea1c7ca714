"""The probability that noisy weights flip a prediction, for every sample of a source, in one call.

The margins under noisy weights are in `jaxcurv.margins`, the formula in `jaxcurv.gaussian_flips`.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal, TypeAlias

import jax
import numpy as np
import pandas as pd
from flax import nnx
from numpy.typing import NDArray

from jaxcurv.data.adapters import Keys, SourceLike, as_unlabelled
from jaxcurv.data.sources import Source
from jaxcurv.data.views import Labelled
from jaxcurv.engine.model import LogitsFn, functional
from jaxcurv.gaussian_flips import gaussian_flip_probability
from jaxcurv.margins import Moments, Of, at_mean, margins_of_all
from jaxcurv.progress import progress

AddedVariance: TypeAlias = Any
"""Variance of the margin from elsewhere than the weights, in squared units of the logits: a table
with the columns index and variance, an array of one value a sample `[samples]` in the source's
order, or one number for all."""

NoisyWeights: TypeAlias = Any
"""`Moments`, None for exact weights, or a mapping from names to these."""

_SAME_MARGIN = 1e-2
"""Difference of margins that two devices and precisions may have, of the largest one."""

Once = Callable[[str, Callable[[], pd.DataFrame]], pd.DataFrame]
"""From a pass's name and what makes its table to that table, made now or earlier."""


def flip_probability(
    logits_fn: LogitsFn | nnx.Module,
    source: SourceLike,
    *,
    keys: Keys | None = None,
    params: Any = None,
    moments: NoisyWeights = None,
    added_variance: AddedVariance = None,
    unshifted: bool = False,
    batch_size: int | Literal["auto"] = "auto",
    description: str = "flip probability",
    once: Once = lambda name, make: make(),
) -> pd.DataFrame:
    """Probability that a chip flips each sample's prediction, to first order; no chip is run.

        P = Phi(-(m + s) / sd)

    m is the margin of the digital prediction over the best other class. m + s is the margin of the
    same class under the chips' mean weights; negative where drift alone flips the prediction.
    sd^2 = sum_w (dm/dw)^2 var(w) + the added variance, its gradients taken there. The change of the
    margin counts as Gaussian, the deviations of the weights as independent
    (`gaussian_flip_probability`).

    Mean and variance of the margin are computed, not sampled. Where the mean of the weights is an
    estimate, its squared standard error belongs in their variance (`Moments`).

    Cost: one forward pass of the digital weights, and for each of the moments a forward pass and
    backward passes to the weights of each sample (`jaxcurv.costs.FLIP_PROBABILITY` for one). A
    sample's numbers do not depend on its batch. A model that rounds what it computes, so that noise
    moves its logits by jumps, is warned of.

    Args:
      logits_fn, params: as for `input_curvature`; the weights must be there to differentiate.
      source, keys: as for `score_dataset`, or an array of images alone: labels are not used.
      moments: mean and variance of the weights' deviations, as `bridge.weight_moments` gives them;
        None where the weights are exact. Several by name share the digital pass, and the same
        object under several names shares its own.
      added_variance: what converters and noise at each operation add, as `bridge.output_noise`
        gives it; a table is joined by its index, and its column margin, where there is one,
        compared with the model's. By name where the moments are.
      unshifted: also the column unshifted, the probability around the digital weights with the
        mean left out. The digital pass then costs as much as the others.
      batch_size: samples read at once, 64 for "auto".
      description: a few words for the progress bar.
      once: called for each pass with its name and a function that makes its table; returns the
        table. For callers that keep the tables of finished passes.

    Returns:
      index int64, prediction and runner_up int32 (both of the digital model), margin and shift in
      units of the logits, variance in their square, and probability, float64; one row a sample, in
      the source's order. Where the moments are given by name, the column noise comes first and the
      tables follow each other.

    Raises:
      ValueError: no noise at all, moments that do not fit the weights, an added variance that is
        negative, not finite or absent for a sample, of other samples or another model by its
        margins, or a column without its table, or what `margin_table` refuses.
    """
    source = as_unlabelled(source, keys=keys)
    by_name, added = _by_name(moments, added_variance)
    words = {name: _words(name, moments is by_name) for name in by_name}
    more = {name: _checked_variance(added.get(name, 0.0), source, words[name]) for name in by_name}
    model, weights = functional(logits_fn, params)
    weights = jax.device_put(weights)
    first_names: dict[int, str] = {}
    for name, one in by_name.items():
        first_names.setdefault(id(one), name)
    distinct = {name: one for name, one in by_name.items() if one and first_names[id(one)] == name}
    spreads = {name: Moments(None, one.variance) for name, one in distinct.items()}

    def margins(
        name: str, samples: Source, weights: Any, noises: Mapping[str, Moments], of: Of
    ) -> pd.DataFrame:
        text = f"{description}: {name}"
        make = partial(
            margins_of_all, model, samples, params=weights, noises=noises, of=of,
            batch_size=batch_size, description=text,
        )  # fmt: skip
        with progress(len(samples), text):
            return once(name, make)

    with progress((1 + len(distinct)) * len(source), description):
        noises = spreads if unshifted else {}
        digital = margins("digital", source, weights, noises, of="prediction")
        for name in by_name:
            _require_same_margins(added.get(name), digital, words[name])
        indices = digital["index"].to_numpy()
        predicted = Labelled(source, digital["prediction"].to_numpy(), indices)
        at_means = {
            name: margins(
                f"mean-{name}",
                predicted,
                at_mean(weights, one, name),
                {name: spreads[name]},
                "label",
            )
            for name, one in distinct.items()
        }
    tables = []
    for name, one in by_name.items():
        added_here = _of_samples(more[name], indices, words[name])
        weights_name = None if one is None else first_names[id(one)]
        table = _probabilities(digital, at_means, weights_name, added_here, unshifted)
        if moments is by_name:
            table.insert(0, "noise", name)
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def _by_name(
    moments: NoisyWeights,
    added: AddedVariance,
) -> tuple[Mapping[str, Moments | None], Mapping[str, Any]]:
    """Both arguments by name, that of the only noise being "weights"."""
    if moments is None or isinstance(moments, Moments):
        if moments is None and added is None:
            raise ValueError("nothing is noisy: give moments, added_variance or both")
        return {"weights": moments}, {} if added is None else {"weights": added}
    wanted = "moments are jaxcurv.Moments, as bridge.weight_moments(..., like=model) gives them, "
    wanted += "or such by name, None for exact weights"
    if not isinstance(moments, Mapping) or not moments:
        raise ValueError(f"{wanted}; got {moments if moments == {} else type(moments).__name__}")
    for name, one in moments.items():
        if not isinstance(one, Moments | None):
            raise ValueError(f"{wanted}; got {type(one).__name__} under {name!r}")
    added = {} if added is None else added
    if not isinstance(added, Mapping):
        raise ValueError("several moments by name need the added variance by name too")
    if unknown := sorted(added.keys() - moments.keys()):
        raise ValueError(
            f"added_variance is given for {', '.join(unknown)}, which moments are not; "
            f"{unknown[0]}=None stands for exact weights"
        )
    if silent := [name for name, one in moments.items() if one is None and name not in added]:
        raise ValueError(f"nothing is noisy in {', '.join(silent)}: give moments, or leave it out")
    return moments, added


def _words(name: str, named: bool) -> str:
    """What messages call a noise's added variance."""
    return f"added_variance[{name!r}]" if named else "added_variance"


def _checked_variance(given: Any, source: Source, what: str) -> NDArray[np.float64] | pd.Series:
    """An added variance as float64, by the samples' index where it is a table."""
    table = isinstance(given, pd.DataFrame)
    if table and (missing := {"index", "variance"} - set(given)):
        raise ValueError(f"{what} is a table without the column {' and '.join(sorted(missing))}")
    if isinstance(given, pd.Series):
        raise ValueError(
            f"{what} is a column, whose rows do not say of which samples they are: give its table, "
            "which is joined by index, or .to_numpy() of one in the source's order"
        )
    variance = np.asarray(given["variance"] if table else given)
    shapes = [(len(given),)] if table else [(), (len(source),)]
    if variance.dtype.kind not in "fiu" or variance.shape not in shapes:
        raise ValueError(
            f"{what} must be real numbers [{len(source)}] or one number; got {variance.dtype} "
            f"{variance.shape}"
        )
    if len(wrong := variance[~(np.isfinite(variance) & (variance >= 0))]):
        raise ValueError(f"{what} must be finite and >= 0; got {wrong[0]}")
    variance = variance.astype(np.float64)
    if not table:
        return np.broadcast_to(variance, len(source))
    by_index = pd.Series(variance, given["index"].to_numpy())
    if by_index.index.has_duplicates:
        raise ValueError(f"{what} has an index twice: give the rows of these samples alone")
    if hasattr(source, "indices"):
        _of_samples(by_index, np.asarray(source.indices), what)
    return by_index


def _require_same_margins(given: Any, digital: pd.DataFrame, what: str) -> None:
    """Refuses a table of added variance whose own margins are not the model's.

    Args:
      given: where it is a table with the columns index and margin, as `bridge.output_noise` gives
        it, the margins of the digital prediction.
      digital: index and margin, by the model.

    Raises:
      ValueError: they are of other samples, or of a model with other weights.
    """
    if not isinstance(given, pd.DataFrame) or "margin" not in given:
        return
    theirs = given.set_index("index")["margin"].loc[digital["index"]].to_numpy(np.float64)
    ours = digital["margin"].to_numpy(np.float64)
    off = np.abs(theirs - ours)
    if len(off) and off.max() > _SAME_MARGIN * np.abs(ours).max():
        first = int(off.argmax())
        raise ValueError(
            f"{what} is of other samples, or of a model with other weights: at index "
            f"{digital['index'].iloc[first]} its margin is {theirs[first]:.4g}, the model's "
            f"{ours[first]:.4g}; compute it of this model and these samples, in this order where "
            "they are arrays without an index"
        )


def _of_samples(
    variance: NDArray[np.float64] | pd.Series, indices: NDArray[np.integer], what: str
) -> NDArray[np.float64]:
    """The added variance of the samples of some indices, float64 `[samples]`."""
    if not isinstance(variance, pd.Series):
        return variance
    if len(absent := np.setdiff1d(indices, variance.index.to_numpy())):
        raise ValueError(
            f"{what} lacks {len(absent)} samples, the first of index "
            f"{absent[0]}: compute it of the same samples"
        )
    return variance.loc[indices].to_numpy()


def _probabilities(
    digital: pd.DataFrame,
    at_means: Mapping[str, pd.DataFrame],
    weights: str | None,
    added: NDArray[np.float64],
    unshifted: bool,
) -> pd.DataFrame:
    """One noise's table.

    Args:
      digital: margins around the digital weights.
      at_means: margins and variances around the mean weights, by name.
      weights: the name there; None where the weights are exact.
      added: variance from elsewhere, `[samples]`.
    """
    margin = digital["margin"].to_numpy(np.float64)
    zeros = np.zeros(len(margin))
    shift, variance, around_digital = zeros, zeros, zeros
    if weights is not None:
        shift = at_means[weights]["margin"].to_numpy(np.float64) - margin
        variance = at_means[weights][f"{weights}_variance"].to_numpy(np.float64)
        if unshifted:
            around_digital = digital[f"{weights}_variance"].to_numpy(np.float64)
    table = digital[["index", "prediction", "runner_up"]].assign(
        margin=margin,
        shift=shift,
        variance=variance + added,
        probability=gaussian_flip_probability(margin, shift, variance + added),
    )
    if unshifted:
        table["unshifted"] = gaussian_flip_probability(margin, zeros, around_digital + added)
    return table
