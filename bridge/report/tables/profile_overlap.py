"""Whether the profiles of a run fail on the same samples."""

from __future__ import annotations

import logging
from dataclasses import asdict, fields
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from bridge.analysis.overlap import COLUMNS, SystematicShare, failure_overlap, systematic_share
from bridge.report.folds import POOLED
from bridge.report.tables.outcomes import over_chips

log = logging.getLogger(__name__)


def profile_overlap(
    joined: pd.DataFrame,
    fold: str,
    *,
    bins: int = 20,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Whether the profiles of a run fail on the same digitally correct samples.

    Profiles without any failure are left out. All profiles of one seed are one chip with some of
    its non-idealities switched off: with a single chip, their overlap holds what they share of its
    random numbers, too. Intervals are over samples: they do not cover the choice of the chips.

    Args:
      joined: as `bridge.report.tables.outcomes.join` returns it, with the column margin.
      fold: one that was scored, or `POOLED` for all samples.
      bins: equal-sized bins of the margin; an assumption.
      confidence: confidence level of the intervals, between 0 and 1.
      resamples: number of bootstrap resamples.
      seed: seed of the bootstrap.

    Returns:
      As `overlap.failure_overlap` of the profiles; and profile with the fields of
      `overlap.SystematicShare`, a row a profile that has two chips or more. Both are empty
      where fewer samples are digitally correct than there are bins, which the log says.

    Raises:
      ValueError: no margin, or no such fold.
    """
    if "margin" not in joined:
        raise ValueError("joined has no column margin; score with the digital logit margin")
    rows = joined if fold == POOLED else joined[joined["fold"] == fold]
    if rows.empty:
        raise ValueError(f"no fold {fold!r} here; there is {', '.join(joined['fold'].unique())}")
    rows = rows[rows["digital_correct"]]
    interval: dict[str, Any] = {"confidence": confidence, "resamples": resamples, "seed": seed}
    failures: dict[str, npt.NDArray[np.bool_]] = {}
    for profile, of_profile in rows.groupby("profile", sort=False):
        failed = over_chips(of_profile, "failure")[1].astype(bool)
        if failed.any():
            failures[str(profile)] = failed
    samples = rows.drop_duplicates("sample").sort_values("sample")
    if len(samples) < bins:
        log.warning(
            "no overlap of fold %s: %d digitally correct samples cannot fill %d bins",
            *(fold, len(samples), bins),
        )
        failures = {}
    overlap = pd.DataFrame(columns=[*COLUMNS])
    if failures:
        overlap = failure_overlap(
            failures, samples["margin"].to_numpy(), same_chips=True, bins=bins, **interval
        )
    systematic = pd.DataFrame(
        [
            {"profile": profile, **asdict(systematic_share(failed, **interval))}
            for profile, failed in failures.items()
            if len(failed) > 1
        ],
        columns=["profile", *(one.name for one in fields(SystematicShare))],
    )
    return overlap, systematic
