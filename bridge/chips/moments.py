"""How far a profile's chips are off, as mean and variance: of weights, and of the logit margin.

What `jaxcurv.flip_probability` takes in. The weights' part is carried to the margin there; the part
of converters and of noise drawn at each operation is computed here.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Literal, NamedTuple, overload

import numpy as np
import pandas as pd
import torch
from flax import nnx
from torch import nn

from bridge.checks import require_seed
from bridge.chips.conversion import convert
from bridge.chips.equivalents import by_own_names, join_tied, with_equivalents
from bridge.chips.examination import examine
from bridge.chips.execution.fast_tiles import propagated_variance
from bridge.chips.images import Images, as_batch, refused_layout
from bridge.chips.memories.protocol import GivesMoments
from bridge.chips.memory_layout import Layout, contiguous
from bridge.chips.outcomes import refuse_other_scale
from bridge.chips.plain_layers import (
    copy_of,
    fold_parametrizations,
    staying_digital,
    without_compilation,
    without_fast_paths,
)
from bridge.chips.profiles import Profile
from bridge.chips.programming import outside_inference_mode, program, sampled_moments
from bridge.chips.streams import SharedRows
from bridge.chips.tile_moments import as_moments, tile_moments
from bridge.chips.tiles import AnalogLayer, named_layers, named_tiles, output_scale, placed_tiles
from bridge.weights.state import carry, from_torch
from jaxcurv.data.adapters import Keys, SourceLike, as_unlabelled
from jaxcurv.data.reading import read_batches
from jaxcurv.margins import Moments
from jaxcurv.progress import progress
from jaxcurv.settings import is_whole, plain

_COMPARED = 4  # samples that show whether a batch's rows are theirs


class WeightMoments(NamedTuple):
    """Mean and variance of a parameter's deviations from the digital weights, float32.

    Attributes:
      mean: in the parameter's shape and unit.
      variance: in its shape, in the square of its unit.
    """

    mean: torch.Tensor
    variance: torch.Tensor


class _Call(NamedTuple):
    """One call of a layer of the digital network.

    Attributes:
      layer: its name.
      inputs: what it is given, `[rows, ...]`, in units of its activations.
      probe: zeros in the shape of its output, added to it; their `grad` is the margin's.
    """

    layer: str
    inputs: torch.Tensor
    probe: torch.Tensor


@overload
def weight_moments(
    model: nn.Module,
    profile: Profile,
    *,
    like: None = None,
    chips: int = 16,
    seed: int = 1_000_000,
    digital_layers: Sequence[str] = (),
) -> dict[str, WeightMoments]: ...


@overload
def weight_moments(
    model: nn.Module,
    profile: Profile,
    *,
    like: nnx.Module,
    chips: int = 16,
    seed: int = 1_000_000,
    digital_layers: Sequence[str] = (),
) -> Moments: ...


def weight_moments(
    model: nn.Module,
    profile: Profile,
    *,
    like: nnx.Module | None = None,
    chips: int = 16,
    seed: int = 1_000_000,
    digital_layers: Sequence[str] = (),
) -> dict[str, WeightMoments] | Moments:
    """Mean and variance of each weight's deviation on a profile's chips, without programming any.

    Closed forms and quadrature over what programming, drift and reading draw
    (`bridge.chips.memories`). Clipping, programming, drift, read noise, compensation and weight
    noise drawn once per chip are in it; converters and noise drawn at each operation are not
    (`output_noise`). Each weight is taken by itself: what the weights of a tile share is not seen
    as shared. A compensation's factor is the ratio of expectations, mean magnitude before over mean
    magnitude read, by readings without converters: coarse ones, of 6 bits or so, or very few
    weights make the true factor another.

    A memory of your own gives its moments by a method `moments(targets)`, see
    `bridge.chips.GivesMoments`. Where it has none, its noise model is sampled, and the squared
    standard error of a weight's mean, the sample variance over `chips`, is added to its variance: a
    flip probability then knows that its mean margin is an estimate. No other mean is one.

    Args:
      model: digital, float32 and in eval mode; not changed.
      profile: the non-idealities, the time of inference included.
      like: the same network as a Flax NNX model; the moments then come as
        `jaxcurv.flip_probability` takes them. Its values do not matter.
      chips: how often each tile is programmed and read, for a memory without `moments` alone. A
        variance is known to about sqrt(2 / (chips - 1)) of itself.
      seed: of the first of these, for such a memory alone; the k-th has seed + k. Far from the
        seeds of simulated chips, so that a prediction learns nothing from the chips that it is
        compared with.
      digital_layers: as for `program`.

    Returns:
      With `like`, `jaxcurv.Moments` of two NNX models whose variables are the moments, and of one
      with the weights, so that `flip_probability` refuses others; else the moments by the weight's
      name in the state dict. Each has its weight's shape; a mean is in the weight's unit, a
      variance in its square.

    Raises:
      ValueError: fewer than two chips, a model that is on tiles already, a `like` of other
        shapes, a memory's moments of other shapes, or what `program` and `from_torch` refuse.
    """
    chips, seed = plain(chips), require_seed(seed)
    if not is_whole(chips) or chips < 2:
        raise ValueError(f"a variance needs chips to be an integer >= 2, got {chips!r}")
    _refuse_tiles(model)
    quiet = replace(
        profile,
        adc=None,
        dac=None,
        out_noise=None,
        wnoise=None if profile.noise_of_operations else profile.wnoise,
    )

    # Flax's layers have plain weights, also beside the tiles.
    left = staying_digital(model, digital_layers if like is None else [])
    folded = fold_parametrizations(without_compilation(copy_of(model), left), left)
    digital = folded.state_dict()
    on_tiles = with_equivalents(copy_of(folded), left)
    before = on_tiles.state_dict()
    join_tied(on_tiles, staying_digital(on_tiles, digital_layers))
    if like is not None:  # which refuses another network, before what takes long
        weights = from_torch(folded, like)
    with outside_inference_mode():
        analog, _ = convert(model, quiet, digital_layers, seed=seed)
    layers = named_layers(analog)
    found: dict[str, WeightMoments] = {}
    with progress(len(layers), f"weight moments {profile.name}", "layer") as shown:
        for layer, tiles in layers.items():
            name = f"{layer}.weight" if layer else "weight"
            found[name] = _layer_moments(profile, layer, tiles, before[name].cpu(), chips, seed)
            shown.update()
    for other, name in _other_names(on_tiles).items():
        if f"{name}.weight" in found:
            found[f"{other}.weight"] = found[f"{name}.weight"]
    found = by_own_names(folded, found)
    if like is None:
        return found
    return Moments(
        carry(moment_state_dict(found, digital, "mean"), like),
        carry(moment_state_dict(found, digital, "variance"), like),
        weights,
    )


def _layer_moments(
    profile: Profile, name: str, layer: AnalogLayer, weight: torch.Tensor, chips: int, seed: int
) -> WeightMoments:
    """Moments of one layer's weights, in the shape and the unit of its digital weight."""
    matrix = weight.double().reshape(len(weight), -1).numpy()
    mean, variance = np.zeros(matrix.shape), np.zeros(matrix.shape)
    for tile_name, tile, rows, columns in placed_tiles(layer):
        targets = tile.tile.get_weights().double().numpy()
        scale = output_scale(tile).double().numpy()[:, None]
        devices = None
        if isinstance(profile.memory, GivesMoments):
            devices = as_moments(profile.memory, targets)
        elif profile.memory is not None:
            path = f"{name}.{tile_name}".lstrip(".")
            devices = sampled_moments(profile.memory, targets, chips, seed, path)
        found = tile_moments(profile, targets, devices)
        mean[rows, columns] = scale * found.mean
        if profile.clipping.type != "none":
            mean[rows, columns] += scale * targets - matrix[rows, columns]
        variance[rows, columns] = scale**2 * found.variance
    return WeightMoments(
        *(torch.from_numpy(one).float().reshape(weight.shape) for one in (mean, variance))
    )


def _other_names(network: nn.Module) -> dict[str, str]:
    """The first path of every layer that has several, by each of the others."""
    first: dict[nn.Module, str] = {}
    return {
        name: first[layer]
        for name, layer in network.named_modules(remove_duplicate=False)
        if first.setdefault(layer, name) != name
    }


def moment_state_dict(
    moments: Mapping[str, WeightMoments],
    state_dict: Mapping[str, torch.Tensor],
    which: Literal["mean", "variance"],
) -> dict[str, torch.Tensor]:
    """One of the moments as a whole state dict on the CPU, zero for whatever is exact.

    `bridge.from_torch(moment_state_dict(...), model)` then gives a Flax model whose variables are
    the moments of its weights.

    Args:
      moments: as `weight_moments` gives them.
      state_dict: the digital model's.
      which: "mean", in the weights' units, or "variance", in their squares.

    Returns:
      The state dict's names and shapes; moments float32, zeros of its own dtypes.

    Raises:
      ValueError: moments of a weight that the model does not have, or of another shape.
    """
    if which not in ("mean", "variance"):
        raise ValueError(f"which is mean or variance, got {which!r}")
    shapes = {name: tuple(tensor.shape) for name, tensor in state_dict.items()}
    for name, moment in moments.items():
        if shapes.get(name) != tuple(moment.mean.shape):
            raise ValueError(
                f"moments of {name} {tuple(moment.mean.shape)} do not fit the model, which has "
                f"{shapes.get(name, 'no such weight')}: compute them of this model"
            )
    zeros = {name: torch.zeros_like(tensor, device="cpu") for name, tensor in state_dict.items()}
    return zeros | {name: getattr(moment, which).clone() for name, moment in moments.items()}


def output_noise(
    model: nn.Module,
    profile: Profile,
    source: SourceLike,
    *,
    keys: Keys | None = None,
    calibration: Images | None = None,
    digital_layers: Sequence[str] = (),
    batch_size: int = 64,
    description: str = "output noise",
) -> pd.DataFrame:
    """The variance of each sample's margin from converters and from noise at each operation.

    To first order around the digital model, sum over tiles and outputs y of (dm/dy)^2 var(y), m the
    largest minus the second largest logit. For an ADC var(y) = step^2 / 12, in units of the
    layer's outputs: its step times the tile's scale and the unit of inputs (the largest magnitude
    of the input vector, or the DAC's fixed range). For noise drawn at each operation it is the
    profile's (`WeightNoise`, `OutputNoise`). A DAC adds the sum over the inputs x of each column of
    tiles of (dm/dx)^2 step^2 / 12, dm/dx that column's part, for inputs that are not 0 and not the
    largest: these are exact. Rounding errors count as uniform and independent, of an input in the
    patches that a convolution rounds one by one too. Not in it: saturation beyond a converter's
    range, and that a memory's weights differ from the digital ones. Costs about one training step a
    batch.

    Args:
      model: digital, float32 and in eval mode; not changed.
      profile: the non-idealities; its memory and the noise that is
        drawn once per chip are left out (`weight_moments`).
      source, keys: as for `predict`, or an array of images alone: labels are not used.
      calibration: as for `program`; the very images that the chips are calibrated on.
      digital_layers: as for `program`.
      batch_size: images at once.
      description: a few words for the progress bar.

    Returns:
      index int64, margin in units of the logits and variance in their square, float64; one row a
      sample, in the source's order. The variance is 0 under a profile without converters and
      without noise at each operation.

    Raises:
      ValueError: a model that is on tiles already, malformed samples, images of another scale than
        the calibration's, non-finite margins, or what `program` and `Chip.examine` refuse.
    """
    source = as_unlabelled(source, keys=keys)
    _refuse_tiles(model)
    batch_size = plain(batch_size)
    if not is_whole(batch_size) or batch_size < 1 or not len(source):
        raise ValueError(
            "batch_size and the number of samples must be at least 1, got "
            f"{batch_size!r} and {len(source)}"
        )
    operated = replace(profile, memory=None, wnoise=profile.noise_of_operations)
    chip = program(model, operated, seed=0, calibration=calibration, digital_layers=digital_layers)
    layers = list(named_layers(chip.analog))
    left = staying_digital(model, chip.digital_layers)
    copied = without_compilation(copy_of(model), left)
    digital = with_equivalents(copied, left).cpu().requires_grad_(False)
    without_fast_paths(digital, [digital.get_submodule(name) for name in layers])
    propagated = _Propagation(digital, layers, chip.executable.network)
    layout = Layout(digital)
    indices: list[int] = []
    margins, variances = [], []
    with progress(len(source), description) as shown:
        for images, _, read in read_batches(source, batch_size, pixels=np.float32):
            numbers = read.tolist()
            if chip.largest_pixel is not None:
                refuse_other_scale(images, numbers, chip.largest_pixel, first=not indices)
            batch = as_batch(images, torch.device("cpu"), first=not indices)
            if not indices:
                examine(chip.analog, chip.digital_layers, batch, chip.engine)
                with torch.no_grad(), refused_layout(batch):
                    layout(digital, batch[:2])
            if layout.contiguous:
                batch = contiguous(batch)
            margin, variance = propagated(batch)
            _refuse_non_finite(margin, numbers)
            indices += numbers
            margins.append(margin)
            variances.append(variance)
            shown.update(len(numbers))
    return pd.DataFrame(
        {
            "index": np.array(indices, np.int64),
            "margin": torch.cat(margins).numpy(),
            "variance": torch.cat(variances).numpy(),
        }
    )


class _Propagation:
    """Margins and their variances, float64 `[batch]` each, of a batch or of one sample at a time,
    in units of the logits and in their square.

    The latter where a layer works on something else than the samples' rows, as
    `Executable.one_by_one`; the first samples of a batch show it.
    """

    def __init__(self, digital: nn.Module, layers: Sequence[str], network: nn.Module):
        self._digital, self._layers, self._network = digital, layers, network
        self._apart = self._compared = False

    def __call__(self, batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if not self._apart:
            try:
                margin, variance, _ = self._of(batch)
                if self._compared or len(batch) == 1:
                    return margin, variance
                self._compared = True
                if self._is_samples(batch[:_COMPARED]):
                    return margin, variance
            except SharedRows:
                pass
            self._apart = True
        alone = [self._of(image) for image in batch.split(1)]
        return torch.cat([one[0] for one in alone]), torch.cat([one[1] for one in alone])

    def _of(self, batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
        """Margins, variances, and the rows that each call of a layer has for a sample."""
        margin, calls = _differentiated(self._digital, self._layers, batch)
        variance = torch.zeros(len(batch), dtype=torch.float64)
        rows = []
        with torch.no_grad():
            for call in calls:
                one = _from_call(call, self._network, len(batch))
                variance += one.sum(1)
                rows.append(one.shape[1])
        return margin, variance, rows

    def _is_samples(self, batch: torch.Tensor) -> bool:
        _, together, rows = self._of(batch)
        try:
            alone = [self._of(image) for image in batch.split(1)]
        except (RuntimeError, AssertionError):
            return True  # it runs on batches of one size
        if any(one[2] != rows for one in alone):
            return False
        return torch.allclose(torch.cat([one[1] for one in alone]), together, rtol=1e-3, atol=0.0)


def _differentiated(
    digital: nn.Module, layers: Sequence[str], images: torch.Tensor
) -> tuple[torch.Tensor, list[_Call]]:
    """The margins, float64 `[batch]`, and every call of the layers, its probe's gradient set."""
    calls: list[_Call] = []

    def keep(name: str, inputs: torch.Tensor, probe: torch.Tensor) -> None:
        calls.append(_Call(name, inputs.detach().clone(), probe))

    with torch.enable_grad(), _probed(digital, layers, keep):
        logits = digital(images.clone())
        if logits.ndim != 2 or logits.shape[1] < 2:
            raise ValueError(
                "the model must give logits [batch, class] of two classes or more, not "
                f"{tuple(logits.shape)}"
            )
        top = logits.topk(2).values
        margin = top[:, 0] - top[:, 1]
        # Samples do not interact in eval mode: the gradient of the sum is each one's own.
        margin.sum().backward()
    return margin.detach().double(), calls


@contextmanager
def _probed(
    network: nn.Module,
    layers: Sequence[str],
    keep: Callable[[str, torch.Tensor, torch.Tensor], None],
) -> Iterator[None]:
    """Within it, zeros that take a gradient are added to each layer's output, ahead of its hooks.

    Not the output itself is asked for its gradient: what follows may work on it in place.
    """

    def hook(
        name: str, _: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor
    ) -> torch.Tensor:
        probe = torch.zeros_like(output, requires_grad=True)
        keep(name, inputs[0], probe)
        return output + probe

    handles = [
        network.get_submodule(name).register_forward_hook(partial(hook, name), prepend=True)
        for name in layers
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _from_call(call: _Call, network: nn.Module, samples: int) -> torch.Tensor:
    """A call's part of the margins' variances, float64 `[batch, row]`, in the logits' square."""
    if call.probe.grad is None:
        return torch.zeros(samples, 0, dtype=torch.float64)  # the logits do not depend on it
    layer = network.get_submodule(call.layer)
    rows = propagated_variance(layer, call.inputs, call.probe.grad)
    if len(rows) % samples:
        raise SharedRows(
            f"layer {call.layer} works on {len(rows)} rows for {samples} samples: each sample "
            "needs as many"
        )
    return rows.view(samples, len(rows) // samples)


def _refuse_tiles(model: nn.Module) -> None:
    if named_tiles(model):
        raise ValueError("the model is on tiles already: give the digital one")


def _refuse_non_finite(margin: torch.Tensor, indices: Sequence[int]) -> None:
    finite = margin.isfinite()
    if not finite.all():
        raise ValueError(
            f"the margin is not finite, first for image {indices[int(finite.int().argmin())]}; "
            "check the weights and the images"
        )
