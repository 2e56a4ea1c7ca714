"""Live routing: a chip answers, and the digital model where the chip is not to be trusted."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Literal, get_args

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import nn

from bridge.chips.evaluation import as_logits, require_eval, require_independent
from bridge.chips.images import Images, as_tensor, refused_layout
from bridge.chips.memory_layout import Layout
from bridge.chips.outcomes import refuse_other_scale
from bridge.chips.programming import Chip
from bridge.routing.costs import Costs
from bridge.routing.curves import mean_energy
from jaxcurv.logit_scores import logit_scores
from jaxcurv.settings import plain

AnalogScore = Literal["margin", "entropy", "least_confidence"]
"""Score of the chip's own logits, see `jaxcurv.logit_scores`; the margin with its sign changed."""

_LARGEST = {"margin": 0.0, "least_confidence": 1.0}
"""What no score of that name exceeds."""


def _told(score: object) -> str:
    """What was given as scores, in a few words."""
    if isinstance(score, pd.Series):
        return (
            "a Series; give dict(zip(table['index'], table['curvature'])), by sample and not by row"
        )
    return repr(score) if isinstance(score, str) else f"a {type(score).__name__}"


@dataclass(frozen=True)
class Routed:
    """A batch's answers, NumPy arrays in its order.

    Attributes:
      prediction: class of the largest logit, `[batch]`.
      routed: whether the digital model answered, `[batch]`.
      score: what was compared with the threshold, `[batch]`; higher is more fragile, the margin has
        its sign changed.
      logits: `[batch, class]`, those of the chip or of the digital model, whichever answered.
      energy: mean energy a sample, in the unit of the costs.
    """

    prediction: NDArray[np.int64]
    routed: NDArray[np.bool_]
    score: NDArray[np.float64]
    logits: NDArray[np.float32]
    energy: float


@dataclass(frozen=True)
class Router:
    """Routes the samples of a batch whose score is at least a threshold to the digital model.

    With a score of the chip's logits ("margin", "entropy" or "least_confidence") every sample runs
    on the chip first. The margin enters as -margin, for a small margin is fragile: threshold=-0.5
    routes the margins of at most 0.5. With stored scores, such as the curvature of known inputs,
    each sample runs in one place only. `bridge.routing.choose_threshold` finds a threshold on
    validation samples, `guaranteed_threshold` one that bounds failures. In the example an analog
    inference costs 0.1 and a digital one 1: a mean of 0.55.

    >>> import torch, bridge
    >>> digital = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2)).eval()
    >>> chip = bridge.program(digital, bridge.PROFILES["pcm"], seed=0)
    >>> router = bridge.Router(digital, chip, threshold=0.5, score={7: 0.9, 8: 0.1})
    >>> answer = router(torch.ones(2, 1, 2, 2), indices=[7, 8])
    >>> answer.routed.tolist(), answer.energy
    ([True, False], 0.55)

    Attributes:
      digital: the model that the chip was programmed from, in eval mode, on the CPU.
      chip: answers what is not routed.
      threshold: samples of score >= threshold are routed; inf routes nothing but stored scores of
        inf, -inf everything. The margin enters as -margin, at most 0.
      score: a score of the chip's logits, by name; or stored scores, larger for more fragile
        samples, by the samples' stable index.
      costs: energy of one inference, analog and digital.

    Raises:
      ValueError: a digital model that computes as in training or, when called, mixes the samples of
        a batch, an unknown score, a NaN threshold or one that the named score never reaches; when
        called, a digital model of other classes, malformed batches, samples without a stored score
        and logits that are not finite.
    """

    digital: nn.Module
    chip: Chip
    threshold: float
    score: AnalogScore | Mapping[int, float] = "margin"
    costs: Costs = field(default_factory=Costs)
    _layout: Layout = field(init=False, repr=False, compare=False)
    _examined: list[bool] = field(default_factory=list, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.digital, nn.Module) or not isinstance(self.chip, Chip):
            raise ValueError(
                "a router takes the digital torch module and then a chip of bridge.program; got "
                f"{type(self.digital).__name__} and {type(self.chip).__name__}"
            )
        require_eval(self.digital, "the digital model")
        object.__setattr__(self, "_layout", Layout(self.digital))
        object.__setattr__(self, "threshold", plain(self.threshold))
        if not isinstance(self.threshold, Real) or math.isnan(self.threshold):
            raise ValueError(
                f"the threshold must be a number, inf to route nothing; got {self.threshold!r}"
            )
        names = get_args(AnalogScore)
        if not isinstance(self.score, Mapping | str) or (
            isinstance(self.score, str) and self.score not in names
        ):
            raise ValueError(
                f"score is one of {', '.join(names)}, or a mapping from index to score, such as "
                f"dict(zip(indices, scores)); got {_told(self.score)}"
            )
        if isinstance(self.score, str) and math.isfinite(self.threshold):
            self._refuse_unreachable(self.score)

    def _refuse_unreachable(self, name: str) -> None:
        """Refuses a finite threshold above every score of that name: it would route nothing."""
        if self.threshold <= _LARGEST.get(name, math.inf):
            return
        if name == "margin":
            raise ValueError(
                f"threshold {self.threshold:g} routes nothing: the margin enters as -margin, at "
                f"most 0; give {-self.threshold:g} to route margins of at most {self.threshold:g}, "
                "or inf to route nothing"
            )
        raise ValueError(
            f"threshold {self.threshold:g} routes nothing: {name} is at most {_LARGEST[name]:g}; "
            "give a smaller one, or inf to route nothing"
        )

    def __call__(self, images: Images, indices: Sequence[int] | None = None) -> Routed:
        """Answers a batch.

        Args:
          images: float32, an array `[batch, height, width, channel]` or a torch tensor `[batch,
            channel, height, width]`, normalised as the model expects.
          indices: the samples' stable indices, >= 0, which name the noise of each operation; by
            default the positions in the batch. Stored scores need them.

        Raises:
          ValueError: see `Router`.
        """
        images = as_tensor(images, "images")
        if indices is None:
            if isinstance(self.score, Mapping):
                raise ValueError(
                    "stored scores belong to samples by their index: give the indices of these "
                    "images, router(images, indices), for their positions may be those of others"
                )
            indices = range(len(images))
        try:
            numbers = [operator.index(index) for index in indices]
        except TypeError as error:
            raise ValueError(f"indices must be whole numbers, one an image ({error})") from error
        if len(images) != len(numbers):
            raise ValueError(f"{len(images)} images need as many indices; got {len(numbers)}")
        require_eval(self.digital, "the digital model")
        if min(numbers) < 0:
            raise ValueError(f"indices must not be negative, got {min(numbers)}")
        if self.chip.largest_pixel is not None:
            first = not self._examined
            refuse_other_scale(images.numpy(), numbers, self.chip.largest_pixel, first=first)
        if not self._examined:
            with torch.inference_mode():
                require_independent(self._run_digital, images, "the digital model")
            self._examined.append(True)
        if isinstance(self.score, Mapping):
            return self._by_stored_score(images, numbers, self.score)
        return self._by_analog_score(images, numbers, self.score)

    def _by_analog_score(
        self, images: torch.Tensor, numbers: list[int], name: AnalogScore
    ) -> Routed:
        logits = self._analog(images, numbers)
        found = logit_scores(logits.numpy())[name].astype(np.float64)
        score = -found if name == "margin" else found
        routed = score >= self.threshold
        parts = [(np.ones(len(routed), np.bool_), logits)]
        if routed.any():
            parts.append((routed, self._digital(images, routed)))
        return self._answer(parts, numbers, score, routed, "analog")

    def _by_stored_score(
        self, images: torch.Tensor, indices: list[int], stored: Mapping[int, float]
    ) -> Routed:
        if missing := [index for index in indices if index not in stored]:
            raise ValueError(
                f"no score is stored for {len(missing)} of {len(indices)} samples, the first at "
                f"index {missing[0]}: store one, inf to have it routed"
            )
        for index in indices:
            if not isinstance(plain(stored[index]), Real):
                raise ValueError(f"the stored score of index {index} is {stored[index]!r}")
        score = np.array([float(stored[index]) for index in indices])
        if np.isnan(score).any():
            raise ValueError(
                f"the stored score of index {indices[np.isnan(score).argmax()]} is NaN"
            )
        routed = score >= self.threshold
        parts = []
        if routed.any():
            parts.append((routed, self._digital(images, routed)))
        if not routed.all():
            kept = [index for index, away in zip(indices, routed, strict=True) if not away]
            parts.append((~routed, self._analog(images[torch.from_numpy(~routed)], kept)))
        return self._answer(parts, indices, score, routed, "known")

    def _analog(self, images: torch.Tensor, indices: list[int]) -> torch.Tensor:
        with refused_layout(images):
            return as_logits(self.chip(images, indices), len(images))

    def _digital(self, images: torch.Tensor, routed: NDArray[np.bool_]) -> torch.Tensor:
        with torch.inference_mode(), refused_layout(images):
            return as_logits(self._run_digital(images[torch.from_numpy(routed)]), int(routed.sum()))

    def _run_digital(self, images: torch.Tensor) -> torch.Tensor:
        return self._layout(self.digital, images)

    def _answer(
        self,
        parts: Sequence[tuple[NDArray[np.bool_], torch.Tensor]],
        indices: list[int],
        score: NDArray[np.float64],
        routed: NDArray[np.bool_],
        kind: Literal["analog", "known"],
    ) -> Routed:
        """The logits of which samples, the later ones in place of earlier, as one answer."""
        classes = {some.shape[1] for _, some in parts}
        if len(classes) > 1:
            raise ValueError(
                f"chip and digital model must have the same classes; got {sorted(classes)}: give "
                "the model that the chip was programmed from"
            )
        found = np.empty((len(routed), *classes), np.float32)
        for rows, some in parts:
            found[rows] = some.numpy()
        finite = np.isfinite(found).all(axis=1)
        if not finite.all():
            first = int(finite.argmin())
            which = "digital model" if routed[first] else "chip"
            raise ValueError(
                f"logits of the {which} are not finite, first at index {indices[first]}; check the "
                "weights and the images"
            )
        energy = float(mean_energy(routed.mean(), kind, self.costs))
        return Routed(found.argmax(axis=1), routed, score, found, energy)
