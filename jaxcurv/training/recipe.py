"""Settings of training, importable without JAX."""

from dataclasses import dataclass
from typing import Literal

from jaxcurv.settings import is_number, make_plain, require_whole


@dataclass(frozen=True)
class Recipe:
    """Training by SGD: Nesterov momentum, linear warm-up, cosine decay to zero, crops and flips.

    Attributes:
      epochs: passes over the training fold.
      batch_size: images per step; the last, shorter batch of an epoch is dropped.
      learning_rate: peak learning rate, reached at the end of the warm-up.
      warmup_epochs: epochs over which the learning rate rises linearly to its peak; in a training
        of no more epochs than these, its first half.
      momentum: Nesterov momentum, at least 0 and below 1.
      weight_decay: weight decay: this times the parameter is added to its gradient, as in PyTorch's
        SGD; for every parameter.
      crop_padding: random crops: pixels of black padding on each side before an image is cropped; 0
        for no cropping.
      flip: mirror training images left to right at random.
      precision: number format of the computations while training; weights are always float32.
      clip_sigma: clipping of weights: after each step the weights of a layer (parameters of two or
        more axes) lie within this many of their own standard deviations (divisor N - 1) of zero;
        None (`none` on the command line) for no clipping.
      keep_every: keeps the checkpoint of every N-th epoch beside the best and the newest one, so
        that scores can be averaged over training; each takes twice the size of the weights. `none`
        keeps those two alone. Changes nothing else.
    """

    epochs: int = 200
    batch_size: int = 128
    learning_rate: float = 0.1
    warmup_epochs: float = 5.0
    momentum: float = 0.9
    weight_decay: float = 5e-4
    crop_padding: int = 4
    flip: bool = True
    precision: Literal["float32", "bfloat16"] = "float32"
    clip_sigma: float | None = None
    keep_every: int | None = None

    def __post_init__(self) -> None:
        make_plain(self)
        for name in ("epochs", "batch_size", "crop_padding"):
            require_whole(name, getattr(self, name))
        if self.epochs < 1 or self.batch_size < 2:
            raise ValueError(
                "training needs at least 1 epoch and a batch of at least 2 images; got "
                f"epochs={self.epochs}, batch_size={self.batch_size}"
            )
        if self.keep_every is not None:
            require_whole("keep_every", self.keep_every, 1)
        if not is_number(self.learning_rate) or self.learning_rate <= 0:
            raise ValueError(f"learning_rate must be positive; got {self.learning_rate}")
        if not is_number(self.warmup_epochs) or self.warmup_epochs < 0:
            raise ValueError(
                f"warmup_epochs must be finite and not negative; got {self.warmup_epochs}"
            )
        if not is_number(self.momentum) or not 0 <= self.momentum < 1 or self.crop_padding < 0:
            raise ValueError(
                "momentum must lie in [0, 1) and crop_padding must not be negative; got "
                f"{self.momentum}, {self.crop_padding}"
            )
        if not is_number(self.weight_decay) or self.weight_decay < 0:
            raise ValueError(
                f"weight_decay must be finite and not negative; got {self.weight_decay}"
            )
        if self.clip_sigma is not None and (not is_number(self.clip_sigma) or self.clip_sigma <= 0):
            raise ValueError(
                f"clip_sigma must be positive, or none for no clipping; got {self.clip_sigma}"
            )

    def warmup_steps(self, steps_per_epoch: int) -> int:
        """Steps of the warm-up: those of `warmup_epochs`, or half of all if they are as many."""
        shorter = self.warmup_epochs < self.epochs
        return round((self.warmup_epochs if shorter else self.epochs / 2) * steps_per_epoch)
