"""Many chips of a network in one call: each profile, chip and time, a row a sample."""

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import quote

import numpy as np
import pandas as pd
import torch
from torch import nn

from bridge.checks import require_count, require_finite, require_seed
from bridge.chips.evaluation import require_eval
from bridge.chips.images import Images, as_tensor
from bridge.chips.outcomes import Keep
from bridge.chips.prediction import predict
from bridge.chips.profiles import PROFILES, Profile, to_json
from bridge.chips.programming import program
from jaxcurv.data.adapters import Keys, SourceLike, as_source
from jaxcurv.data.reading import read_batch
from jaxcurv.data.sources import Source
from jaxcurv.data.splits import subset
from jaxcurv.data.views import Chosen
from jaxcurv.logit_scores import logit_scores
from jaxcurv.progress import progress
from jaxcurv.rows import index_checksum
from jaxcurv.storage.lock import lock

Profiles: TypeAlias = str | Profile | Sequence[str | Profile] | Mapping[str, Profile]
"""Names of `bridge.PROFILES`, profiles of your own, or those under names of your own."""

_MOST_CALIBRATED = 1000
"""Images that calibrate a chip at most: all of them are in memory, and run as one batch."""

_FIRST = ("profile", "time", "chip")

_SAME_IMAGES = (
    "calibration images must be others than those that are predicted, or the converter ranges "
    "would be set on the test: give images of another source, or a share of these to hold out, "
    "such as calibration=0.1"
)


@dataclass(frozen=True, eq=False)
class _Calibration:
    """What sets the ranges of the chips' converters."""

    images: Images | None
    """None where no profile needs any."""
    count: int = 0
    held_out: int = 0
    """How many of the given images these are, which are not predicted."""


def simulate(
    model: nn.Module,
    images: SourceLike,
    *,
    profiles: Profiles | None = None,
    chips: int = 5,
    times: float | Sequence[float] | None = None,
    calibration: SourceLike | float = 0.1,
    seed: int = 0,
    stream: str | None = None,
    keys: Keys | None = None,
    keep: Keep | None = logit_scores,
    batch_size: int = 64,
    device: str | torch.device = "cpu",
    out: str | os.PathLike[str] | None = None,
    **options: Any,
) -> pd.DataFrame:
    """What many chips make of every image: each profile, chip and time after programming.

    For each profile and seed the model is programmed (`bridge.program`), aged to each time
    (`Chip.at`) and run on all images (`bridge.predict`); the tables are joined. Profiles of one
    seed are one chip with some of its non-idealities switched off.

        predictions = bridge.simulate(net, images, profiles="adc+wnoise+pcm", times=[20, 3600])

    >>> net = nn.Sequential(nn.Flatten(), nn.Linear(12, 3)).eval()
    >>> pixels = np.random.default_rng(0).normal(size=(20, 2, 2, 3)).astype(np.float32)
    >>> found = simulate(net, (pixels, np.arange(20) % 3), profiles=["ideal", "pcm"], chips=2)
    >>> found.groupby(["profile", "chip"], sort=False).size().to_dict()
    {('ideal', 0): 20, ('ideal', 1): 20, ('pcm', 0): 20, ('pcm', 1): 20}

    Args:
      model: a float32 torch module in eval mode, as `bridge.program` takes it; not changed.
      images: the samples, as anything that `jaxcurv.data.as_source` takes, such as
        `jaxcurv.image_folder(...)`; float32 and normalised, as `bridge.predict` takes them.
      profiles: names of `bridge.PROFILES`, profiles of your own, or a mapping of names of your own
        to them, such as `{"6 bits": Profile(adc=ADC(bits=6))}`; None for all that have a name.
      chips: how many chips a profile; their seeds are `seed`, `seed + 1` and so on.
      times: seconds since programming, one or several, at which chips with a memory are read; None
        for the time of each profile's memory. What has no memory does not change and is read once.
      calibration: images that set the ranges of ADCs, of another source than those that are
        predicted: a source, or an array or a tensor as `bridge.program` takes it. Of a source at
        most 1,000 images are taken, by their indices and `seed`. Or the share of `images` that is
        held out for it, likewise at most 1,000: these are not predicted. Not used, and nothing
        held out, where no profile has an ADC with a calibrated range.
      seed: seed of the first chip, and of the choice of images for calibration.
      stream: as for `bridge.program`: a label, such as the network's name, for chips that share no
        random number with those of another network.
      keys: what the rows of `images` call image, label and index.
      keep: what to keep of each batch's logits, as for `bridge.predict`; None keeps the logits.
      batch_size: images at once.
      device: where to run the chips.
      out: a folder for a table of each finished chip and time. The same call goes on after a kill
        and runs only what is missing; what is there is compared with the chip, programmed again,
        as `bridge.predict(out=...)` does.
      options: as for `bridge.program`: engine, digital_layers, strict.

    Returns:
      A DataFrame in the order of profiles, chips, times and images: profile (its name), time
      (float64, seconds since programming, NaN without a memory), chip (int64, its seed) and the
      columns of `bridge.predict`: index, path (where the source names files), label, prediction,
      correct, and margin, entropy and least_confidence, or what `keep` makes. Its
      `attrs["simulation"]` says how it was made, and how many images were held out.

    Raises:
      ValueError: as `bridge.program` and `bridge.predict` say; unknown or repeated profiles, times
        without a memory, a share outside (0, 1) or that leaves no image, or calibration images
        that are those to predict.
      FolderInUse: another process writes to `out`.
    """
    if taken := {"t_inference", "profile"} & options.keys():
        raise ValueError(f"simulate takes times and profiles, not {', '.join(sorted(taken))}")
    require_eval(model, "the model")
    chosen = _named(profiles)
    readings = {name: _readings(profile, times) for name, profile in chosen.items()}
    if times is not None and all(np.isnan(one).all() for one in readings.values()):
        raise ValueError(
            f"no profile of {', '.join(chosen)} has a memory, so that nothing changes with time: "
            "leave times out, or take one with pcm"
        )
    seeds = range(require_seed(seed), seed + require_count("chips", chips))
    source = as_source(images, keys=keys)
    if not len(source):
        raise ValueError("nothing to predict: the source has no samples")
    calibrated, source = _calibrated(images, source, chosen, calibration, seed)
    folder = None if out is None else Path(out)

    def tables() -> Iterator[pd.DataFrame]:
        for (name, profile), one in product(chosen.items(), seeds):
            given = calibrated.images if profile.needs_calibration else None
            chip = program(model, profile, seed=one, calibration=given, stream=stream, **options)
            for time in readings[name]:
                with progress(len(source), what := f"chip {one}: {name}"):
                    found = predict(
                        chip if times is None or np.isnan(time) else chip.at(time),
                        source,
                        batch_size=batch_size,
                        device=device,
                        description=what,
                        out=None if folder is None else folder / _file(name, one, time),
                        keep=keep,
                    )
                yield found.assign(profile=name, time=time, chip=one)[[*_FIRST, *found.columns]]

    rounds = chips * sum(map(len, readings.values()))
    alone = nullcontext() if folder is None else lock(folder)
    with alone, progress(rounds * len(source), "simulate"):
        joined = pd.concat(tables(), ignore_index=True)
    of_one_chip = joined[: len(source)]
    joined.attrs = {
        **index_checksum(of_one_chip["index"].to_numpy(), of_one_chip["label"].to_numpy()),
        "simulation": {
            "images": len(source) + calibrated.held_out,
            "held_out": calibrated.held_out,
            "calibration_images": calibrated.count,
            "chips": list(seeds),
            "stream": stream,
            "times": sorted({one for several in readings.values() for one in several if one >= 0}),
            "profiles": {name: to_json(profile) for name, profile in chosen.items()},
        },
    }
    return joined


def _named(profiles: Profiles | None) -> dict[str, Profile]:
    """The profiles by name."""
    if profiles is None:
        return dict(PROFILES)
    named: list[tuple[Any, Any]]
    if isinstance(profiles, Mapping):
        named = list(profiles.items())
    else:
        several = [profiles] if isinstance(profiles, str | Profile) else list(profiles)
        named = [(one, PROFILES[one]) if isinstance(one, str) else (None, one) for one in several]
    for name, profile in named:
        if not isinstance(profile, Profile):
            raise ValueError(
                f"profiles are names of bridge.PROFILES or a Profile each; got {profile!r}"
            )
        if name is not None and not (isinstance(name, str) and name):
            raise ValueError(f"the name of a profile must be a text; got {name!r}")
    names = [profile.name if name is None else name for name, profile in named]
    found = {name: profile for name, (_, profile) in zip(names, named, strict=True)}
    if len(found) < len(named) or not found:
        raise ValueError(
            f"profiles must be one or more, of different names; got {', '.join(names) or 'none'}: "
            'a mapping gives names of your own, such as {"6 bits": Profile(adc=ADC(bits=6))}'
        )
    return found


def _readings(profile: Profile, times: float | Sequence[float] | None) -> list[float]:
    """The times at which a profile's chips are read; NaN alone without a memory."""
    if profile.memory is None:
        return [float("nan")]
    if times is None:
        return [float(profile.memory.t_inference)]
    found = [float(require_finite("a time", one)) for one in np.atleast_1d(times).tolist()]
    if not found or len(set(found)) < len(found):
        raise ValueError(f"times must differ and be at least one; got {times}")
    return found


def _calibrated(
    given: SourceLike,
    source: Source,
    profiles: Mapping[str, Profile],
    calibration: SourceLike | float,
    seed: int,
) -> tuple[_Calibration, Source]:
    """What sets the ranges of converters, and the samples to predict."""
    share = float(calibration) if isinstance(calibration, int | float | np.number) else None
    if share is not None and not 0 < share < 1:
        raise ValueError(f"the share held out for calibration must be in (0, 1); got {share:g}")
    if calibration is given or calibration is source:
        raise ValueError(_SAME_IMAGES)
    if not any(one.needs_calibration for one in profiles.values()):
        return _Calibration(None), source
    if share is None:
        assert not isinstance(calibration, float)
        if hasattr(calibration, "shape"):  # an array or a tensor
            _refuse_predicted(calibration, np.arange(len(calibration)), source)
            return _Calibration(calibration, len(calibration)), source
        others = as_source(calibration, classes=False)
        positions = subset(_indices(others), _MOST_CALIBRATED, seed)
        read = _images(others, positions)
        _refuse_predicted(read, _indices(others)[positions], source)
        return _Calibration(read, len(positions)), source
    count = min(max(1, round(share * len(source))), _MOST_CALIBRATED)
    if count >= len(source):
        raise ValueError(
            f"{share} of {len(source)} images, held out for calibration, leaves none to predict: "
            "give calibration= images of another source"
        )
    held = subset(_indices(source), count, seed)
    print(
        f"simulate: {count:,} of the {len(source):,} images set the converter ranges and are not "
        "predicted (calibration= takes images of another source)",
        file=sys.stderr,
    )
    rest = Chosen(source, np.setdiff1d(np.arange(len(source)), held))
    return _Calibration(_images(source, held), count, count), rest


def _refuse_predicted(images: Images, indices: np.ndarray, source: Source) -> None:
    """Refuses calibration images that are those to predict: by up to eight of equal indices."""
    known = _indices(source)
    common = np.flatnonzero(np.isin(indices, known))[:8]
    if not len(common):
        return
    order = np.argsort(known, kind="stable")
    predicted = _images(source, order[np.searchsorted(known[order], indices[common])])
    some = as_tensor(images, "calibration")[torch.from_numpy(common)].cpu()
    if torch.equal(some, as_tensor(predicted, "images")):
        raise ValueError(_SAME_IMAGES)


def _indices(source: Source) -> np.ndarray:
    """Stable indices where the source tells them, else positions."""
    return np.asarray(source.indices if hasattr(source, "indices") else np.arange(len(source)))


def _images(source: Source, positions: np.ndarray) -> np.ndarray:
    return read_batch(source, positions.tolist(), pixels=np.float32, classes=False).images


def _file(profile: str, seed: int, time: float) -> str:
    """The name of the file of a chip at one time."""
    at = "" if np.isnan(time) else f"-{time!r}s"
    return f"{quote(profile, safe='+ ')}-{seed}{at}.parquet"
