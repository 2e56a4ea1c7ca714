"""A chip layer by layer: how far a layer's outputs are off, and how many predictions it costs."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from aihwkit.simulator.configs import InferenceRPUConfig
from numpy.typing import NDArray
from torch import nn

from bridge.checks import require_seed
from bridge.chips.equivalents import with_equivalents
from bridge.chips.evaluation import require_eval
from bridge.chips.examination import examine, refused_access
from bridge.chips.execution.executable import Engine, Executable
from bridge.chips.images import Images, as_tensor, refused_layout
from bridge.chips.layer_tables import ALL_LAYERS, decibels, failures_by_layer
from bridge.chips.plain_layers import (
    copy_of,
    staying_digital,
    without_compilation,
    without_fast_paths,
)
from bridge.chips.prediction import predict
from bridge.chips.profiles import Profile
from bridge.chips.programming import Chip, clipped_share, program
from bridge.chips.tiles import named_layers, named_tiles, placed_tiles
from jaxcurv.data.adapters import Keys, SourceLike, as_source
from jaxcurv.progress import progress
from jaxcurv.settings import is_whole, plain

_CHUNK = 16  # images at once: the digital outputs of every layer are held


def layer_report(chip: Chip, model: nn.Module, images: Images) -> pd.DataFrame:
    """How far the outputs of each layer on tiles are from the digital ones.

    The signal-to-noise ratio of a layer is `10 log10(sum y^2 / sum (y_chip - y)^2)` over all images
    and outputs, y being the digital model's. Noise of each operation is drawn as for samples of the
    indices 0, 1, ...; memory does not grow with the number of images.

    Args:
      chip: on any engine.
      model: the digital model that was programmed, in eval mode; not changed. For a network that
        AIHWKit had converted: the network of an ideal chip,
        `program(network, PROFILES["ideal"], seed=0).executable.network`.
      images: float32, normalised as the model expects; a tensor `[batch, channel, height, width]`
        or an array `[batch, height, width, channel]`.

    Returns:
      One row a layer, in the order in which the model runs them: layer (its path), tiles (how many
      it takes), snr_db (of its output in the running chip, where the layers before it err too),
      own_snr_db (the same, fed with the digital activations: what this layer alone adds) and
      clipped_share (the largest share of a tile's outputs beyond its ADC range, in [0, 1]; NaN
      without an ADC). Decibels are inf where nothing differs, NaN where the layer does not run,
      and for snr_db where it runs on other samples than digitally, as behind a router.

    Raises:
      ValueError: malformed images, non-finite outputs, a model that is in training mode, on
        tiles, or not the one that was programmed, a chip that was changed since it was made, or
        what `Chip.examine` refuses.
    """
    chip.refuse_changed()
    images = as_tensor(images, "images")
    _refuse_unsuitable(model)
    examine(chip.analog, chip.digital_layers, images, chip.engine)
    placed = {name: placed_tiles(layer) for name, layer in named_layers(chip.analog).items()}
    running = _layers_at(chip.executable.network, placed)
    # Under the chip's random state, so that its layers can be called within.
    stays = staying_digital(model, chip.digital_layers)
    copied = with_equivalents(without_compilation(copy_of(model), stays), stays)
    digital = Executable(copied.cpu(), chip.executable.noise, one_by_one=False)
    without_fast_paths(digital.network, _layers_at(digital.network, placed).values())
    _fit_layout(digital, chip.executable, images)
    signal: dict[str, float] = {}
    own_error, error = dict.fromkeys(placed, 0.0), dict.fromkeys(placed, 0.0)
    expected: dict[str, list[torch.Tensor]] = {name: [] for name in placed}
    elsewhere: set[str] = set()  # layers that other samples reach on the chip

    def keep(name: str, x: torch.Tensor, y: torch.Tensor) -> None:
        y = y.clone()  # the model's next layer may work in place
        signal[name] = signal.get(name, 0.0) + _energy(y)
        own_error[name] += _energy(_difference(name, running[name].forward(x), y))
        expected[name].append(y)

    def compare(name: str, _: torch.Tensor, y: torch.Tensor) -> None:
        if not expected[name] or expected[name][0].shape != y.shape:
            elsewhere.add(name)
        else:
            error[name] += _energy(y - expected[name].pop(0))

    with torch.inference_mode(), progress(len(images), "layers") as shown:
        for start in range(0, len(images), _CHUNK):
            chunk = images[start : start + _CHUNK]
            indices = range(start, start + len(chunk))
            with _observed(_layers_at(digital.network, placed), keep):
                digital(chunk, indices)
            with _observed(running, compare), refused_access():
                chip.executable(chunk, indices)
            elsewhere |= {name for name, left in expected.items() if left}
            for left in expected.values():
                left.clear()
            shown.update(len(chunk))

    order = [*signal, *(name for name in placed if name not in signal)]
    energies = pd.DataFrame({"signal": signal, "error": error, "own_error": own_error}).loc[order]
    if broken := [name for name in signal if not np.isfinite(energies.loc[name]).all()]:
        raise ValueError(
            f"non-finite outputs in layers {', '.join(broken)}; check the weights and the images"
        )
    clipped = clipped_share(chip, images) if chip.out_bounds else {}
    shares = {
        name: max(clipped.get(f"{name}.{tile.name}".lstrip("."), math.nan) for tile in tiles)
        for name, tiles in placed.items()
    }
    return pd.DataFrame(
        {
            "layer": order,
            "tiles": [len(placed[name]) for name in order],
            "snr_db": np.where(
                [name in elsewhere for name in order],
                math.nan,
                decibels(energies["signal"], energies["error"]),
            ),
            "own_snr_db": decibels(energies["signal"], energies["own_error"]),
            "clipped_share": [shares[name] for name in order],
        }
    )


def layer_failures(
    model: nn.Module,
    profile: Profile | InferenceRPUConfig,
    source: SourceLike,
    *,
    keys: Keys | None = None,
    seed: int = 0,
    chips: int = 1,
    calibration: Images | None = None,
    engine: Engine = "fast",
    digital_layers: Sequence[str] = (),
    batch_size: int = 64,
    device: str | torch.device = "cpu",
    stream: str | None = None,
) -> pd.DataFrame:
    """What each layer alone costs: chips with one layer on tiles and every other one digital.

    The layer is programmed as it is on the whole chip of that seed. The digital model and
    `chips` times (layers + 1) chips run over the source.

    Args:
      model: digital, in eval mode; not changed.
      profile: as for `program`.
      source, keys: as for `predict`.
      seed: seed of the first chip; chip k has seed + k.
      chips: how many.
      calibration, engine: as for `program`.
      digital_layers: paths of what stays digital on every chip.
      batch_size: images at once.
      device: where to run.
      stream: as for `program`.

    Returns:
      One row a layer and a last one, "all layers", the whole chip: layer; chips; samples,
      digitally_correct and failures (digital right, chip wrong), counted over all chips;
      failure_rate = failures / digitally_correct in [0, 1] with its 95 % interval
      failure_rate_low and _high (`bridge.analysis.rate_interval`); and analog_accuracy in [0, 1].
      A rate is NaN where no sample is digitally correct.

    Raises:
      ValueError: chips below 1, a model that is in training mode or on tiles already, and whatever
        `program` and `predict` refuse.
    """
    chips, seed = plain(chips), require_seed(seed)
    if not is_whole(chips) or chips < 1:
        raise ValueError(f"chips must be an integer >= 1, got {chips!r}")
    _refuse_unsuitable(model)
    source = as_source(source, keys=keys)
    # First, for it refuses what cannot be programmed.
    settings: dict[str, Any] = {"calibration": calibration, "engine": engine, "stream": stream}
    whole = program(model, profile, seed=seed, digital_layers=digital_layers, **settings)
    names = list(named_layers(whole.analog))
    left_digital = {
        name: [*digital_layers, *(other for other in names if other != name)] for name in names
    }
    left_digital[ALL_LAYERS] = [*digital_layers]

    def correct(which: Chip | nn.Module, description: str) -> NDArray[np.bool_]:
        table = predict(
            which, source, batch_size=batch_size, device=device, description=description
        )
        return table["correct"].to_numpy()

    outcomes: dict[str, list[NDArray[np.bool_]]] = {name: [] for name in left_digital}
    with progress((1 + chips * len(left_digital)) * len(source), "layers"):
        digital_correct = correct(model, "digital")
        for chip_seed in range(seed, seed + chips):
            for name, others in left_digital.items():
                chip = program(model, profile, seed=chip_seed, digital_layers=others, **settings)
                outcomes[name].append(correct(chip, f"chip {chip_seed}, {name}"))
    return failures_by_layer(digital_correct, outcomes)


def _fit_layout(digital: Executable, chip: Executable, images: torch.Tensor) -> None:
    """Has both settle how tensors lie in memory, and whether samples run one by one.

    So no pass that is observed runs twice.
    """
    some = images[:_CHUNK]  # not one, whose axis networks may squeeze away
    with torch.inference_mode(), refused_layout(some):
        digital(some[:2], range(len(some[:2])))
        with refused_access():
            chip(some, range(len(some)))
    digital.one_by_one = chip.one_by_one


def _refuse_unsuitable(model: nn.Module) -> None:
    require_eval(model, "the model")
    if named_tiles(model):
        raise ValueError("the model is on tiles already: give the digital one")


def _layers_at(network: nn.Module, paths: Iterable[str]) -> dict[str, nn.Module]:
    try:
        return {path: network.get_submodule(path) for path in paths}
    except AttributeError as error:
        raise ValueError(f"this is not the model that was programmed: {error}") from error


@contextmanager
def _observed(
    layers: Mapping[str, nn.Module], observe: Callable[[str, torch.Tensor, torch.Tensor], None]
) -> Iterator[None]:
    """Within it, `observe` is shown each layer's path, input and output whenever it runs.

    The input is what the layer's pre-hooks make of it, the output what its hooks are given.
    """

    def hook(
        name: str, _: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor
    ) -> None:
        observe(name, inputs[0], output)

    # Ahead of the layer's own hooks.
    handles = [
        layer.register_forward_hook(partial(hook, name), prepend=True)
        for name, layer in layers.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _difference(name: str, actual: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    if actual.shape != expected.shape:
        raise ValueError(
            f"this is not the model that was programmed: layer {name} gives {tuple(expected.shape)}"
            f", on the chip {tuple(actual.shape)}"
        )
    return actual - expected


def _energy(values: torch.Tensor) -> float:
    return float(values.double().square().sum())
