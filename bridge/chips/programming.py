"""Analog chips: a trained network programmed onto simulated crossbar tiles (AIHWKit).

A chip is determined by the network, the profile, the seed and the stream's label. Programming
noise, read noise and weight noise come from separate streams per seed, label and tile, so all
profiles of one seed are the same chip with some of its non-idealities switched off, and networks
whose tiles have the same names are on the same devices unless their labels differ.
"""

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from aihwkit.simulator.configs import InferenceRPUConfig
from numpy.typing import NDArray
from torch import nn

from bridge.checks import require_finite, require_seed
from bridge.chips.adc import calibrate_ranges, tile_output_shares
from bridge.chips.conversion import convert
from bridge.chips.dac import input_ranges, set_input_ranges
from bridge.chips.examination import WATCHED, examine, refused_access
from bridge.chips.execution.changes import remember_tiles, tiles_set
from bridge.chips.execution.executable import Engine, Executable, executable_of, require_engine
from bridge.chips.images import Images, as_tensor, refused_layout
from bridge.chips.mappable import some
from bridge.chips.memories.expectations import DeviceMoments
from bridge.chips.memories.protocol import Memory, noise_model_of
from bridge.chips.memory_layout import Layout
from bridge.chips.original import forget_original
from bridge.chips.profiles import ADC, Profile
from bridge.chips.streams import SampleNoise, root_seed, stream
from bridge.chips.tiles import Tile, named_tiles
from bridge.chips.weight_noise import freeze_weight_noise, largest_target
from jaxcurv.progress import progress


@dataclass(frozen=True, eq=False)
class Chip:
    """A programmed chip at one time.

    It is made of a copy of the model as it was: hooks that are registered on the model later do not
    run. What a hook or the network's code closes over, and globals, is not copied: a list or dict
    there that changes later changes the chip's logits too, and nothing tells.

    Attributes:
      analog: the network with its convolution and linear layers on AIHWKit tiles; CPU, eval mode.
        What is changed in it runs only once `chip = chip.on(chip.engine)` has made the executable
        anew. Until then the chip is refused where parameters, statistics of normalisations, weights
        on tiles or hooks were changed; a setting, such as an epsilon, is not seen. At another time
        tiles hold what was programmed, so that `at` refuses those that were set to something else.
      executable: what to run, made of `analog`, as are files, other times and engines: change that.
      profile: the non-idealities, the time of inference included; None where the configuration is
        AIHWKit's, that of the user.
      seed: which chip.
      t_inference: seconds since programming; None if the weights were not programmed into a memory.
      out_bounds: the ADC's range by tile, in the unit of `ADC.range`; empty without an ADC.
      engine: what computes the tiles.
      digital_layers: paths of what was left digital.
      largest_pixel: the largest magnitude in the images that it was calibrated on; None if it was
        not, or on token ids. `predict` refuses images far beyond it.
      input_ranges: the DAC's range by layer on tiles, in units of its activations; empty where
        each input vector has its own.
      stream: the label that, with the seed, names its random numbers; None for the seed alone.
    """

    analog: nn.Module
    executable: Executable
    profile: Profile | None
    seed: int
    t_inference: float | None
    out_bounds: Mapping[str, float]
    engine: Engine
    digital_layers: tuple[str, ...] = ()
    largest_pixel: float | None = None
    input_ranges: Mapping[str, float] = field(default_factory=dict)
    stream: str | None = None

    def __call__(self, images: Images, indices: Sequence[int], read: int = 0) -> torch.Tensor:
        """Logits `[batch, class]` on the CPU.

        Args:
          images: float32, a tensor `[batch, channel, height, width]` (or whatever the network
            takes) or an array `[batch, height, width, channel]`, normalised as the model expects.
          indices: the samples' stable indices, >= 0: they name the noise of each operation.
          read: which read of the chip, >= 0: each draws that noise anew. A memory's read noise,
            which is drawn once for each time, stays.

        Raises:
          ValueError: `analog` was changed since the executable was made of it, or a bad read.
        """
        if not isinstance(images, torch.Tensor):
            images = as_tensor(images, "images")
        self.examine(images)
        with torch.inference_mode(), refused_access():
            return self.executable(images, indices, read)

    def examine(self, images: torch.Tensor) -> None:
        """Refuses a network that would not compute on tiles what the model computes.

        Called before the first images run, and by `program` if it calibrates; afterwards it costs
        nothing. Until then the chip holds on to the model. A UserWarning names layers on tiles that
        none of the first images needs.

        Args:
          images: what the network takes, `[batch, ...]`.

        Raises:
          ValueError: weights are multiplied with outside of a layer on tiles, a sample's logits
            depend on its batch or on what ran before, the chip's copy of the network gives other
            digital logits than the model, or `analog` was changed since the executable was made
            of it.
        """
        self.refuse_changed()
        if unused := examine(self.analog, self.digital_layers, images, self.engine):
            warnings.warn(
                f"{some(unused)} on tiles: not called on the first {min(len(images), WATCHED)} "
                "images; a layer that no image needs, as one for training alone, may be named in "
                "digital_layers",
                stacklevel=2,
            )

    @property
    def root(self) -> int:
        """Seed of all its random streams, of `seed` and `stream`."""
        return root_seed(self.seed, self.stream)

    @property
    def name(self) -> str:
        """The profile's name."""
        return "own configuration" if self.profile is None else self.profile.name

    def at(self, t_inference: float) -> "Chip":
        """The same programmed chip `t_inference` seconds after programming.

        Read noise is drawn anew for each time, from a stream that the time names: asking again
        gives the same chip.

        Raises:
          ValueError: the chip has no memory and so does not change in time, a bad time, a noise
            model of your own whose draws the seed does not decide, or what `refuse_changed`
            refuses.
        """
        self.refuse_changed()
        if self.t_inference is None:
            raise ValueError(f"profile {self.name} has no memory devices, so it does not drift")
        self.refuse_set_tiles()
        t_inference = require_finite("t_inference", t_inference)
        profile = self.profile
        if profile is not None and profile.memory is not None:
            profile = replace(profile, memory=replace(profile.memory, t_inference=t_inference))
        later = replace(self, profile=profile, t_inference=float(t_inference))
        with outside_inference_mode():
            return operate(replace(later, analog=deepcopy(self.analog)))

    def on(self, engine: Engine) -> "Chip":
        """The same chip computed by another engine.

        The executable is made of `analog` as it is now. Where parameters, statistics or hooks of it
        were changed, its first images no longer compare it with the model.

        Raises:
          ValueError: the engine cannot honour a setting of the tiles; all are named.
        """
        pair = self.executable.made_of
        if pair is not None and pair.differing():
            forget_original(self.analog)
        with outside_inference_mode():
            made = executable_of(self.analog, engine, self.root)
        return replace(self, engine=engine, executable=made)

    def refuse_changed(self) -> None:
        """Refuses a chip whose network or executable was changed since one was made of the other.

        Raises:
          ValueError: parameters, statistics of normalisations, weights on tiles or hooks of
            `analog` were; they are named.
        """
        pair = self.executable.made_of
        if pair is not None and (names := pair.differing()):
            raise ValueError(
                f"{some(names)} of chip.analog and chip.executable are no longer the same, so that "
                "one of them would be another chip: change chip.analog, then make the executable "
                "anew, chip = chip.on(chip.engine)"
            )

    def refuse_set_tiles(self) -> None:
        """Refuses a chip whose tiles' weights were set after programming, which aging would undo.

        Raises:
          ValueError: tiles are named.
        """
        if self.t_inference is not None and (names := tiles_set(self.analog)):
            raise ValueError(
                f"the weights of {some(names)} were set after programming, and at another time "
                "these tiles would hold what was programmed: change their programmed_weights in "
                "place of them, then chip = chip.on(chip.engine).at(t_inference)"
            )

    def __copy__(self) -> "Chip":
        return replace(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Chip":
        self.refuse_changed()
        with outside_inference_mode():
            return replace(self, analog=deepcopy(self.analog, memo)).on(self.engine)

    def __reduce__(self) -> Any:
        raise ValueError(
            "a chip cannot be pickled, as torch.save and multiprocessing do: write it with "
            "bridge.save_chip(path, chip) and read it with bridge.load_chip(path, model)"
        )


def program(
    model: nn.Module,
    profile: Profile | InferenceRPUConfig | None,
    *,
    seed: int,
    calibration: Images | None = None,
    engine: Engine = "fast",
    digital_layers: Sequence[str] = (),
    strict: bool = False,
    t_inference: float = 0.0,
    stream: str | None = None,
) -> Chip:
    """Programs a network onto a chip and lets it age to the profile's time of inference.

    Every convolution and linear layer is on tiles of at most 512x512, each with its largest weight
    mapped to 1; normalisation, activations, biases, embeddings and bare parameters stay digital. So
    do products that no tile computes: grouped and transposed convolutions and recurrent cells; a
    warning names them with their share of the work. Products with buffers and other fixed matrices,
    or with weights that the input picks (experts by index), and distances to parameters, are named
    by a warning when the chip first meets images; products that are written out for a single
    output, `(x * w).sum(-1)`, or a stack of such (a depthwise convolution by `unfold`), are not
    seen. A convolution of one or three dimensions goes to
    tiles as its layer `conv` of two, PyTorch's `MultiheadAttention` as the linear layers `q_proj`,
    `k_proj`, `v_proj` and `out_proj` (`bridge.chips.equivalents`). A profile's inputs are scaled by
    their largest magnitude, unless its DAC has a fixed range; there is no IR drop, a DAC or output
    noise only where the profile has one, and drift is compensated only where the memory's
    `compensation` says so. Forward hooks stay, and weights that a pruning mask or a parametrization
    computes are programmed. What a hook closes over is shared with the model's and must not change
    afterwards: keep it in attributes of the layer, which are copied (not in buffers of a `Conv2d`
    or `Linear` layer, which is then none that tiles compute). Torch's global random state is left
    as it was.

    A network with weights on no tile (a product with a parameter outside of a layer), with layers
    on tiles that it does not call, whose weights its code writes, whose code asks what kind of
    layers it has, or whose samples depend on their batch is refused: here where calibration images
    are needed, else when the chip first meets images.

    Args:
      model: float32 and in eval mode; not changed. With a `Conv2d` or `Linear` layer; or a network
        that AIHWKit has converted already, such as one trained hardware-aware: its tiles, weight
        scales and input ranges are kept, the latter also in place of the DAC's range "max", and the
        profile replaces its noise model, drift compensation and the rest of its forward settings.
        What was programmed before is programmed anew from its target weights.
      profile: the non-idealities. An `RPUConfig` of AIHWKit is taken as it is, on its own tile
        class, and the chip programmed by its noise model. None takes a converted network's own
        configuration in the same way. Noise that AIHWKit's compiled tile draws in its forward pass
        (`InferenceRPUConfig`) cannot be seeded: only there a chip's outputs are not reproducible.
      seed: which chip, >= 0; the same seed is the same devices under every profile, so profiles
        compare in pairs. So do networks: those whose tiles have the same names and sizes draw the
        same noise from one seed, as one chip that is programmed again. See `stream`.
      calibration: float32 images as the model takes them, a tensor `[batch, channel, height,
        width]` or an array `[batch, height, width, channel]`; or vectors, signals, videos or token
        ids, see `bridge.chips.images`. Needed only for a calibrated range of the ADC or DAC. They
        set the range, and let `predict` tell images of another scale. A tile that gives nothing but
        0 on them is named by a warning and gets the median of the others' ranges. The ADC's are of
        inputs that the DAC does not round; where its range is fixed they saturate there and are in
        units of it.
      engine: "fast", or "aihwkit" for AIHWKit's own tiles, many times slower.
      digital_layers: paths of layers, or of blocks of them, that stay digital; or of a parameter
        or buffer that the network multiplies with itself.
      strict: refuse products that no tile computes, unless `digital_layers` names them: here, or,
        where it takes images to see them, when the chip first meets some.
      t_inference: seconds since programming under a configuration of AIHWKit; a profile's memory
        has its own.
      stream: a label for devices of its own, such as the network's name or its data set's: chips of
        two labels share no random number, whatever their seeds. Give each network one to compare
        networks as independent samples; None, the seed alone, compares them in pairs.

    Raises:
      ValueError: a model that does not map onto tiles, all its layers that do not named, hooks
        that refer to the network, non-finite weights, a bad seed, stream or range, a calibration
        that is absent, malformed, all 0 or leaves a tile unused, settings that the engine cannot
        honour, named, or a noise model of your own whose draws the seed does not decide.
    """
    with outside_inference_mode():
        return _program(
            *(model, profile, seed, calibration, engine, digital_layers, strict, t_inference),
            stream,
        )


def _program(
    model: nn.Module,
    profile: Profile | InferenceRPUConfig | None,
    seed: int,
    calibration: Images | None,
    engine: Engine,
    digital_layers: Sequence[str],
    strict: bool,
    t_inference: float,
    label: str | None,
) -> Chip:
    seed = require_seed(seed)
    root = root_seed(seed, label)
    t_inference = require_finite("t_inference", t_inference)
    chosen = profile if isinstance(profile, Profile) else None
    if chosen is not None and t_inference != 0:
        raise ValueError("a profile has its time of inference in its memory, not in t_inference")
    analog, digital_layers = convert(model, profile, digital_layers, seed=root, strict=strict)
    tiles = named_tiles(analog)
    require_engine(analog, engine)  # before what takes long
    bounds: dict[str, float] = {}
    ranges: dict[str, float] = {}
    images = largest_pixel = None
    if chosen is not None and chosen.needs_calibration:
        if calibration is None:
            raise ValueError(
                f"a calibrated {_calibrated_converter(chosen)} range needs calibration images; "
                "pass calibration="
            )
        images = as_tensor(calibration, "calibration")
        examine(analog, digital_layers, images, engine)
        _fit_layout(analog, images, root)
        largest_pixel = float(images.abs().max()) if images.is_floating_point() else None
    if chosen is not None and chosen.dac is not None:
        ranges = input_ranges(analog, chosen.dac, images)
        set_input_ranges(analog, ranges)
    if chosen is not None and chosen.adc is not None:
        bounds = _set_ranges(analog, chosen.adc, images)
    _refuse_bad_ranges(tiles)
    age: float | None = float(t_inference) if chosen is None else None
    if chosen is not None and chosen.memory is not None:
        age = float(chosen.memory.t_inference)
    if age is not None:
        _refuse_own_draws(tiles, root, "programming", None)
        with progress(len(tiles), "program", "tile", side=True) as shown:
            for name, tile in tiles.items():
                with stream(root, "programming", name), _without_deprecations():
                    tile.program_weights()
                shown.update()
    return operate(
        Chip(
            analog,
            Executable(analog, SampleNoise(root), one_by_one=False),
            chosen,
            seed,
            age,
            bounds,
            engine,
            digital_layers,
            largest_pixel,
            ranges,
            label,
        )
    )


def operate(chip: Chip) -> Chip:
    """A programmed chip at its time of inference, ready to run.

    Args:
      chip: its `analog` is programmed; it is aged in place, and its executable is not used.
    """
    wnoise = None if chip.profile is None else chip.profile.wnoise
    tiles = named_tiles(chip.analog)
    if chip.t_inference is not None:
        _refuse_own_draws(tiles, chip.root, "reading", chip.t_inference)
    for name, tile in tiles.items():
        if chip.t_inference is not None:
            with stream(chip.root, "reading", name, chip.t_inference), _without_deprecations():
                tile.drift_weights(chip.t_inference)
        if wnoise is not None and wnoise.drawn == "per_chip":
            freeze_weight_noise(tile, wnoise, seed=chip.root, name=name)
    remember_tiles(chip.analog)
    return chip.on(chip.engine)


def sampled_moments(
    memory: Memory, targets: NDArray[np.float64], chips: int, seed: int, name: str
) -> DeviceMoments:
    """Moments of one tile's weights from as many chips, for a memory that does not give them.

    The variance is that of a further chip's weight around the estimated mean: the sample variance
    times 1 + 1 / chips, whose second part is the squared standard error of that mean.

    Args:
      memory: its noise model is sampled, in the streams of `program`.
      targets: `[rows, columns]`, the largest 1.
      chips: at least 2.
      seed: of the first.
      name: of the tile.
    """
    model, t = noise_model_of(memory), memory.t_inference
    weights = torch.from_numpy(targets).float()
    programmed, read = [], []
    for number in range(seed, seed + chips):
        with stream(number, "programming", name), _without_deprecations():
            found, state = model.apply_programming_noise(weights.clone())
        with stream(number, "reading", name, t), _without_deprecations():
            later = model.apply_drift_noise(found, state, t)
        programmed.append(found.abs().double().numpy())
        read.append(later.double().numpy())
    weights_read = np.stack(read)
    return DeviceMoments(
        weights_read.mean(0),
        (1 + 1 / chips) * weights_read.var(0, ddof=1),
        np.abs(weights_read).mean(0),
        np.mean(programmed, 0),
    )


def clipped_share(chip: Chip, images: Images) -> dict[str, float]:
    """The share of each tile's outputs beyond its ADC range on some images, in [0, 1].

    Args:
      chip: a chip with an ADC.
      images: as for `program`.
    """
    if not chip.out_bounds:
        raise ValueError(f"profile {chip.name} has no ADC, so it does not clip outputs")
    images = as_tensor(images, "images")
    _fit_layout(chip.analog, images, chip.root)
    with stream(chip.root, "clipped share"):  # AIHWKit's tiles may draw noise
        return tile_output_shares(chip.analog, images)


def _set_ranges(analog: nn.Module, adc: ADC, calibration: torch.Tensor | None) -> dict[str, float]:
    """Sets every converter's range; returns them by tile in the unit of `ADC.range`.

    That unit is the largest weight, the tiles' own a weight of 1. A calibrated range is found on
    the calibration images.
    """
    tiles = named_tiles(analog)
    largest = {name: float(largest_target(tile)) or 1.0 for name, tile in tiles.items()}
    if adc.range == "calibrated":
        assert calibration is not None
        found = calibrate_ranges(analog, calibration, adc.percentile)
        bounds = {name: adc.headroom * bound for name, bound in found.items()}
    else:
        bounds = {name: float(adc.range) * largest[name] for name in tiles}
    for name, tile in tiles.items():
        tile.rpu_config.forward.out_bound = bounds[name]
    return {name: bounds[name] / largest[name] for name in tiles}


def _calibrated_converter(profile: Profile) -> str:
    adc = profile.adc is not None and profile.adc.range == "calibrated"
    return "ADC" if adc else "DAC"


def _fit_layout(analog: nn.Module, images: torch.Tensor, seed: int) -> None:
    """Has the tiles give contiguous outputs where the network's code needs them.

    Without converters: one that is not calibrated yet gives NaN, which code may not take.
    """
    settings = [tile.rpu_config.forward for tile in named_tiles(analog).values()]
    before = [one.is_perfect for one in settings]
    quiet = stream(seed, "layout")
    try:
        for one in settings:
            one.is_perfect = True
        with torch.inference_mode(), quiet, refused_layout(images), refused_access():
            Layout(analog)(analog, images[:1])
    finally:
        for one, perfect in zip(settings, before, strict=True):
            one.is_perfect = perfect


def _refuse_own_draws(
    tiles: Mapping[str, Tile], seed: int, what: str, t_inference: float | None
) -> None:
    """Refuses a noise model of the user's own that a chip's streams do not seed.

    A copy of its smallest tile that holds something is programmed twice in one stream, or read
    twice at `t_inference`: with draws from torch's global generator alone it then is the same.
    """
    own = {n: t for n, t in tiles.items() if _is_own(t.rpu_config) and t.tile.get_weights().any()}
    if not own:
        return
    name = min(own, key=lambda name: own[name].tile.get_weights().numel())
    tile, found = deepcopy(own[name]), []
    for _ in range(2):
        with stream(seed, what, name, t_inference), _without_deprecations():
            if t_inference is None:
                tile.program_weights()
            else:
                tile.drift_weights(t_inference)
        kept = [one for one in tile.drift_noise_parameters or [] if isinstance(one, torch.Tensor)]
        found.append([tile.tile.get_weights().clone(), *map(torch.clone, kept)])
    if len(found[0]) != len(found[1]) or not all(map(_same, *found)):
        raise ValueError(
            f"the noise model {type(tile.rpu_config.noise_model).__name__} gives other devices "
            f"each time that tile {name} is {'programmed' if t_inference is None else 'read'} with "
            "one seed: draw from torch's global generator alone, as torch.randn_like does, which a "
            "chip's seed, tile and time set; NumPy's and one's own generators they do not"
        )


def _is_own(config: InferenceRPUConfig) -> bool:
    """Whether a noise model is of other code than AIHWKit's and the memories that ship."""
    model = config.noise_model
    parts = [model, getattr(model, "g_converter", None), config.drift_compensation]
    return not all(
        type(one).__module__.startswith(("aihwkit.", "bridge.chips.", "builtins")) for one in parts
    )


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one.nan_to_num(), other.nan_to_num())


@contextmanager
def outside_inference_mode() -> Iterator[None]:
    """Within it a chip is made, whose tensors are then of use everywhere."""
    with torch.inference_mode(False), torch.no_grad():
        yield


@contextmanager
def _without_deprecations() -> Iterator[None]:
    """Hides what AIHWKit's noise models use of PyTorch and NumPy that will change one day."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Using a non-tuple sequence", UserWarning)
        warnings.filterwarnings("ignore", "__array_wrap__ must accept", DeprecationWarning)
        yield


def _refuse_bad_ranges(tiles: Mapping[str, Tile]) -> None:
    """Refuses converters that AIHWKit would silently turn into NaN or leave without saturation."""
    for name, tile in tiles.items():
        forward = tile.rpu_config.forward
        rounds = not forward.is_perfect and forward.inp_res > 0
        if rounds and not 0 < forward.inp_bound < math.inf:
            raise ValueError(
                f"tile {name} quantises its inputs (forward.inp_res={forward.inp_res:g}) over the "
                f"range forward.inp_bound={forward.inp_bound:g}: give a positive and finite one"
            )
        quantises = not forward.is_perfect and forward.out_res > 0
        if quantises and not 0 < forward.out_bound < math.inf:
            raise ValueError(
                f"tile {name} quantises its outputs (forward.out_res={forward.out_res:g}) over the "
                f"range forward.out_bound={forward.out_bound:g}: give a positive and finite one"
            )
