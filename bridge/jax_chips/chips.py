"""A function and its parameters as an analog chip, in JAX."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from flax import nnx
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun
from jaxtyping import Array, Float, Int, Shaped

from bridge.chips.profiles import Profile
from bridge.jax_chips import ranges
from bridge.jax_chips.devices import require_device
from bridge.jax_chips.execution import Network, Ranges, energies, logits, margins
from bridge.jax_chips.layers import Plan, plan, put
from bridge.jax_chips.normals import threefry_key
from bridge.jax_chips.programming import layer_key, program_layer
from bridge.jax_chips.tiles import is_linear
from jaxcurv.engine.batch import PRECISION
from jaxcurv.engine.model import NnxCall
from jaxcurv.engine.tracing import dtypes, fingerprint, trace
from jaxcurv.settings import require_whole

Params = Any
"""A pytree of arrays."""

_KEPT = 4  # examples


class Programmed(NamedTuple):
    """One programmed chip: a pytree, which `jax.vmap` stacks.

    Attributes:
      params: the parameters' structure, shapes and units: a programmed weight stands where its
        target stood, all else as it was.
      units: for each layer what one unit of a tile's outputs amounts to, float32 `[columns of
        tiles, outputs]`: converters and noise of each operation work in it.
      key: of the noise that is drawn at each operation.
      time: seconds since programming, float32; None without a memory.
    """

    params: Params
    units: tuple[Float[Array, "columns outputs"], ...]
    key: Array
    time: Array | None = None

    def read(self, number: int) -> "Programmed":
        """The same devices with other noise of each operation, that of a read of the chip.

        Args:
          number: which read, from 0, which is this one.
        """
        if require_whole("number", number, 0) == 0:
            return self
        return self._replace(key=jax.random.fold_in(self.key, number))


@dataclass(frozen=True, eq=False)
class Chip:
    """A function on an analog chip; made by `analog`.

    Attributes:
      profile: the non-idealities.
      params: the target parameters.
      coverage: every matrix product of a forward pass of one sample, a row a layer and operator:
        layer (path of its parameter), operator, weights, calls, macs (of all calls), tiles (0 where
        digital), place ("analog" or "digital") and reason (why it is digital).
      largest_pixel: largest magnitude in the images that ranges were calibrated on; None where
        nothing was calibrated on pixels.
    """

    profile: Profile
    params: Params = field(repr=False)
    coverage: pd.DataFrame = field(repr=False)
    largest_pixel: float | None
    _logits_fn: Callable[[Params, Array], Array] = field(repr=False)
    _program: ClosedJaxpr = field(repr=False)
    _plan: Plan = field(repr=False)
    _ranges: tuple[np.ndarray, ...] | None = field(repr=False)
    _example: jax.ShapeDtypeStruct = field(repr=False)
    _input_ranges: tuple[float, ...] | None = field(default=None, repr=False)
    _samples: np.ndarray = field(default_factory=lambda: np.zeros(0), repr=False)
    """A few of the examples, by whose logits a file knows the function."""

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers on tiles, by the paths of their parameters."""
        return tuple(one.name for one in self._plan.layers)

    @property
    def adc_ranges(self) -> dict[str, np.ndarray]:
        """Ranges of the converters by layer, float32 `[tiles]`, column by column of tiles, in units
        of outputs of a largest weight of 1 and the unit of inputs; {} without an ADC."""
        if self._ranges is None:
            return {}
        return dict(zip(self.layers, self._ranges, strict=True))

    @property
    def dac_ranges(self) -> dict[str, float]:
        """Input ranges by layer, in units of its activations; {} where each input vector has its
        own unit."""
        return dict(zip(self.layers, self._input_ranges or (), strict=False))

    def program(self, params: Params, key: Array) -> Programmed:
        """Programs parameters onto the chip and lets it age to the memory's `t_inference`.

        A pure function, for `jax.jit`, `jax.vmap` over keys and `jax.grad`.

        Args:
          params: of the structure and shapes of those that `analog` was given.
          key: which chip: the devices of each layer depend on it and on the layer's name alone, so
            that networks with equal names share their noise. Fold a label into the key for
            independence: `jax.random.fold_in(key, zlib.crc32(b"cifar100"))`.

        Raises:
          ValueError: other params, or a function that computes otherwise than when the chip was
            made, for it closes over arrays that have changed since.
        """
        self.require_same_function()
        return self._programmed(params, key)

    def require_same_function(self) -> None:
        """Refuses to go on where the function computes otherwise than when the chip was made.

        Raises:
          ValueError: it does.
        """
        now = fingerprint(_program_of(self._logits_fn, self.params, self._example))
        if now != self._fingerprint:
            raise ValueError(
                "the function computes otherwise than when the chip was made, such as with arrays "
                "that it closes over and that have changed since: put them into params, or make "
                "the chip anew with bridge.analog"
            )

    def _programmed(self, params: Params, key: Array) -> Programmed:
        """`program`, the function unlooked at."""
        leaves, treedef = jax.tree.flatten(_own(params))
        self._require_params(leaves, treedef)
        key = threefry_key(key)
        found = [
            program_layer(
                self.profile,
                layer.grid,
                layer.matrix(leaves[layer.weight.leaf]),
                None if self._ranges is None else jnp.asarray(self._ranges[number]),
                layer_key(key, layer.name),
            )
            for number, layer in enumerate(self._plan.layers)
        ]
        for leaf in {layer.weight.leaf for layer in self._plan.layers}:
            here = [i for i, layer in enumerate(self._plan.layers) if layer.weight.leaf == leaf]
            layers = [self._plan.layers[i] for i in here]
            leaves[leaf] = put(layers, leaves[leaf], [found[i].matrix for i in here])
        params = jax.tree.unflatten(treedef, leaves)
        noise, memory = jax.random.fold_in(key, 0), self.profile.memory
        time = None if memory is None else jnp.float32(memory.t_inference)
        return Programmed(params, tuple(one.units for one in found), noise, time)

    def apply(
        self,
        weights: Programmed,
        images: Shaped[Array | np.ndarray, "batch ..."],
        *,
        indices: Int[Array | np.ndarray, " batch"] | None = None,
    ) -> Float[Array, "batch classes"]:
        """Logits of a programmed chip.

        A pure function, for `jax.jit`, `jax.vmap` over chips and `jax.grad`; the derivative of a
        converter's rounding is 1, that of its saturation 0. The function is as it was when the chip
        was made, with the arrays that it closed over then: whether they have changed since is not
        looked at here, as `program` and `predict` do.

        Args:
          weights: of `program`.
          images: as the function takes them.
          indices: which samples they are, from 0 to `2**32 - 1`; the noise of each operation
            belongs to the chip, the layer and this number. None for their positions.

        Raises:
          ValueError: weights of another chip, images of another shape or kind of numbers, or bad
            indices.
        """
        images = self.as_images(images)
        self.require_one(weights)
        numbers = jnp.arange(len(images), dtype=jnp.uint32)
        if indices is not None:
            numbers = sample_numbers(indices)
        if numbers.shape != (len(images),):
            raise ValueError(f"indices must be one for each of {len(images)} images")
        return self._apply(weights, images, numbers)

    def clipped_share(
        self, weights: Programmed, images: Shaped[Array | np.ndarray, "batch ..."]
    ) -> dict[str, np.ndarray]:
        """The share of each tile's outputs beyond its ADC range on some images, `[tiles]` by layer.

        Noise that is drawn at each operation is left out.

        Raises:
          ValueError: the profile has no ADC, images of another shape or kind of numbers, or a
            function that has changed, as for `program`.
        """
        self.require_same_function()
        if self._ranges is None or self.profile.adc is None:
            raise ValueError(f"profile {self.profile.name} has no ADC, so it does not clip outputs")
        leaves = jax.tree.leaves(weights.params)
        shares = ranges.beyond(
            self._network, leaves, weights.units, np.asarray(self.as_images(images)), self._ranges
        )
        return dict(zip(self.layers, shares, strict=True))

    def at(self, t_inference: float) -> Self:
        """The same chip at another time: its `program` gives the devices of a key at that time.

        Args:
          t_inference: seconds since programming.

        Raises:
          ValueError: the profile has no memory, or the memory no such time.
        """
        if self.profile.memory is None:
            raise ValueError(f"profile {self.profile.name} has no memory, so that it does not age")
        memory: Any = replace(self.profile.memory, t_inference=t_inference)
        later = replace(self, profile=replace(self.profile, memory=memory))
        vars(later)["_apply"] = self._apply  # which no memory enters: compiled once
        return later

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self  # nothing of it changes

    def __reduce__(self) -> Any:
        raise ValueError(
            "a chip holds a function's program and cannot be pickled: make it anew with "
            "bridge.analog, and keep what it programmed with bridge.jax_chips.save_programmed"
        )

    @cached_property
    def _fingerprint(self) -> str:
        return fingerprint(self._program)

    @cached_property
    def _apply(self) -> jax.stages.Wrapped:
        return jax.jit(self._logits)

    @cached_property
    def _program_many(self) -> Callable[[Params, Array], Programmed]:
        """`_programmed` for keys `[chips]`."""
        return jax.jit(jax.vmap(self._programmed, (None, 0)))

    @cached_property
    def _apply_many(self) -> Callable[[Programmed, Array, Array], Array]:
        """`apply` of stacked chips, `[chips, batch, classes]`."""

        def of_chip(weights: Programmed, images: Array, indices: Array) -> Array:
            return self.apply(weights, images, indices=indices)

        return jax.jit(jax.vmap(of_chip, (0, None, None)))

    def _logits(
        self, weights: Programmed, images: Array, indices: Array, chosen: Array | None = None
    ) -> Array:
        """Logits; of the `chosen` layers alone on tiles, where the others have target weights."""
        leaves = jax.tree.leaves(weights.params)
        if is_linear(self.profile):
            return self._exact(leaves, images)
        with jax.default_matmul_precision(PRECISION):
            return logits(
                self._network, leaves, weights.units, weights.key, images, indices, chosen
            )

    def _exact(self, leaves: Sequence[Any], images: Array) -> Array:
        """The function's logits, as its code was when the chip was made."""
        program = jaxpr_as_fun(self._program)
        found: Array = jax.vmap(lambda image: program(*leaves, image[None])[0][0])(images)
        return found

    @cached_property
    def _energies(self) -> Callable[[Programmed, Array, Array], tuple[Array, Array, Array]]:
        """Energies of the layers' outputs and of their errors (`layer_report`)."""

        def of_batch(weights: Programmed, images: Array, indices: Array) -> Any:
            targets, leaves = map(jax.tree.leaves, (self.params, weights.params))
            units, key = weights.units, weights.key
            with jax.default_matmul_precision(PRECISION):
                return energies(self._network, targets, leaves, units, key, images, indices)

        return jax.jit(of_batch)

    def _alone(self, layer: int, weights: Programmed) -> Programmed:
        """The chip with one layer programmed, all else with its target."""
        leaves, treedef = jax.tree.flatten(self.params)
        one = self._plan.layers[layer]
        place = one.weight.leaf
        matrix = one.matrix(jax.tree.leaves(weights.params)[place])
        leaves[place] = put([one], jnp.asarray(leaves[place]), [matrix])
        return weights._replace(params=jax.tree.unflatten(treedef, leaves))

    @property
    def _network(self) -> Network:
        """The function with its tiles."""
        outputs = None if self._ranges is None else ranges.by_output(self._plan, self._ranges)
        both = Ranges(self._input_ranges, outputs)
        return Network(self._program, self._plan, self.profile, both)

    @cached_property
    def _margins(self) -> Callable[[Array], tuple[Array, Array]]:
        """Each sample's margin and the variance of it that operations cause (`output_noise`)."""
        units = self.program(self.params, jax.random.key(0)).units

        def of_batch(leaves: list[Array], units: Sequence[Array], images: Array) -> Any:
            with jax.default_matmul_precision(PRECISION):
                return margins(self._network, leaves, units, images)

        return partial(jax.jit(of_batch), jax.tree.leaves(self.params), units)

    def require_images(self, images: Array | np.ndarray) -> None:
        """Raises ValueError unless images `[batch, ...]` have the shape that the chip is for, and
        numbers of the kind."""
        if images.shape[1:] != self._example.shape:
            raise ValueError(
                f"images of shape {images.shape[1:]}; the chip was made for {self._example.shape}: "
                "make one for these with bridge.analog"
            )
        wanted = self._example.dtype
        if not _stay(images, wanted):
            raise ValueError(
                f"images are {images.dtype}, and the chip was made for {wanted}: give images of "
                "that kind, at the same scale, or make the chip for these with bridge.analog"
            )

    def as_images(self, images: Any) -> Array:
        """Images in the type that the chip is for; raises ValueError as `require_images`."""
        images = jnp.asarray(images)
        self.require_images(images)
        return images.astype(self._example.dtype)

    def require_one(self, weights: Any) -> None:
        """Raises ValueError unless these are the weights of one chip like this."""
        if not isinstance(weights, Programmed):
            raise ValueError("weights must be what chip.program returns")
        self._require_params(*jax.tree.flatten(weights.params))

    def _require_params(self, leaves: Sequence[Any], treedef: Any) -> None:
        targets, wanted = jax.tree.flatten(self.params)
        if treedef != wanted:
            raise ValueError(f"params of another structure: {treedef}, the chip has {wanted}")
        for target, leaf in zip(targets, leaves, strict=True):
            if jnp.shape(leaf) != jnp.shape(target):
                raise ValueError(
                    f"params of other shapes: {jnp.shape(leaf)} in place of {jnp.shape(target)}; "
                    "of several chips give one at a time, as with jax.vmap or jax.lax.map"
                )


def analog(
    logits_fn: Callable[..., Array] | nnx.Module,
    params: Params,
    profile: Profile,
    images: Shaped[Array | np.ndarray, "batch ..."],
    *,
    digital_layers: Sequence[str] = (),
    strict: bool = False,
) -> Chip:
    """Makes an analog chip of a JAX function; the function is not touched.

        chip = bridge.analog(logits_fn, params, bridge.PROFILES["adc+wnoise+pcm"], images)
        weights = chip.program(params, jax.random.key(0))
        logits = chip.apply(weights, images)

        keys = jax.random.split(jax.random.key(0), 100)
        chips = jax.vmap(chip.program, (None, 0))(params, keys)

    >>> weights, images = np.eye(2, dtype=np.float32), np.ones((1, 2), np.float32)
    >>> noisy = bridge.Profile(wnoise=bridge.chips.WeightNoise(sigma=0.1))
    >>> made = bridge.analog(lambda weights, images: images @ weights, weights, noisy, images)
    >>> chips = jax.vmap(made.program, (None, 0))(weights, jax.random.split(jax.random.key(0), 100))
    >>> logits = jax.vmap(made.apply, (0, None))(chips, images)
    >>> logits.shape, bool(abs(logits.std() - 0.1 * 2**0.5) < 0.03)
    ((100, 1, 2), True)

    Each `dot_general` and `conv_general_dilated` of a parameter and something that depends on the
    images is on tiles of at most 512 x 512, split evenly, each with its largest weight mapped to 1.
    The parameter may have been reshaped, transposed, sliced or cast before. Inputs are in units of
    the largest magnitude of each input vector or patch, or of the DAC's fixed range; partial sums,
    biases and all else are digital. Products of two activations are too, and products that no tile
    computes (grouped and transposed convolutions, weights that are computed of parameters,
    constants of the function): a warning names these with their share of the work. So it does with
    products that are written out and summed, `(x[:, :, None] * w).sum(1)`, or sparse. Not seen, and
    digital, are those that are written out for a single output, `(x * w).sum(-1)`, or a stack of
    such (a depthwise convolution of patches); for a single input, `x[:, i:i + 1] * w[i]`, added up;
    of copies (`jnp.tile`); whose terms are padded, joined, clipped or picked before they are
    summed; within loops and branches without other products; and filters in the Fourier domain
    that are written out by real and imaginary parts.

    A parameter that is used several times is one weight on the chip; where the function uses it
    otherwise, as an embedding does, it is read as programmed. Loops with products are unrolled,
    branches all computed; within them a derivative rule of the function's own gives way to that of
    its program. The noise of a memory is AIHWKit's, in distribution; the numbers of a key are not
    those of a seed of `bridge.program`. A key is the stream: networks whose parameters have the
    same names get the same noise from one key, to be compared in pairs. Fold a label into the key
    for independence: `jax.random.fold_in(key, zlib.crc32(b"cifar100"))`.

    Args:
      logits_fn: `logits_fn(params, images) -> [batch, classes]`, of which each sample's row depends
        on the sample alone; or an NNX module in evaluation mode, with None as its params.
      params: target parameters, a pytree.
      profile: the non-idealities; see `bridge.PROFILES`.
      images: examples `[batch, ...]` as the function takes them: their shape, and what the ADC's
        and the DAC's ranges are calibrated on where the profile says so.
      digital_layers: paths of parameters, or of what they are in, whose products stay digital.
      strict: refuse products that no tile computes.

    Raises:
      ValueError: a function without a product that tiles compute, weights that are no floating
        numbers or not finite, a parameter in two arrangements, products inside of a `while_loop`, a
        memory without a model in JAX, unknown digital layers, or a bad calibration.
    """
    if isinstance(logits_fn, nnx.Module):
        if params is not None:
            raise ValueError("an NNX module has its parameters: give None as params")
        graphdef, params = nnx.split(logits_fn)
        logits_fn = NnxCall(graphdef)
    params = _own(params)
    if not isinstance(profile, Profile):
        raise ValueError(f"profile must be a bridge.Profile, got {profile!r}")
    if profile.memory is not None:
        require_device(profile.memory)
    examples = jnp.asarray(images)
    if examples.ndim < 2 or not len(examples):
        raise ValueError(f"images must be [batch, ...], got shape {examples.shape}")
    leaves, names = jax.tree.leaves(params), paths(params)
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"several parameters have the path {', '.join(repeated)}: rename them")
    sample = jax.ShapeDtypeStruct(examples.shape[1:], examples.dtype)
    program = _program_of(logits_fn, params, sample)
    _require_logits(logits_fn, params, examples, program)
    found = plan(program, names, _in_digital(digital_layers, names))
    _require_layers(found, strict)
    for layer in found.layers:
        leaf = leaves[layer.weight.leaf]
        if not isinstance(leaf, jax.core.Tracer) and not bool(jnp.isfinite(leaf).all()):
            raise ValueError(
                f"parameter {names[layer.weight.leaf]} has weights that are not finite"
            )
    chip = Chip(profile, params, found.coverage, None, logits_fn, program, found, None, sample)
    if not isinstance(examples, jax.core.Tracer):
        chip = replace(chip, _samples=np.asarray(examples[:_KEPT]))
    if not profile.needs_calibration:
        return _with_ranges(chip, None, None)
    ideal = replace(chip, profile=Profile(clipping=profile.clipping))
    targets = ideal._programmed(params, jax.random.key(0))
    if jnp.issubdtype(examples.dtype, jnp.floating):
        chip = replace(chip, largest_pixel=float(jnp.abs(examples).max()))
    return _with_ranges(chip, targets, np.asarray(examples))


def _with_ranges(chip: Chip, targets: Programmed | None, images: np.ndarray | None) -> Chip:
    """The chip with the ranges of its converters.

    Args:
      targets: weights without errors, and
      images: what to calibrate on; None where no range is calibrated.
    """
    dac, adc, layers = chip.profile.dac, chip.profile.adc, chip._plan.layers
    leaves = [] if targets is None else jax.tree.leaves(targets.params)
    # Inputs are neither rounded there, nor outputs.
    exact = chip._network._replace(profile=Profile())
    if dac is not None and dac.range != "max":
        if dac.range != "calibrated":
            inputs = (float(dac.range),) * len(layers)
        else:
            assert images is not None
            inputs = ranges.calibrated_inputs(exact, leaves, images, dac.percentile)
        chip = replace(chip, _input_ranges=inputs)
        exact = exact._replace(ranges=Ranges(inputs, None))
    if adc is None:
        return chip
    if adc.range != "calibrated":
        outputs = tuple(np.full(one.grid.count, adc.range, np.float32) for one in layers)
    else:
        assert targets is not None
        assert images is not None
        found = ranges.calibrated(exact, leaves, targets.units, images, adc.percentile)
        outputs = tuple(np.float32(adc.headroom) * bounds for bounds in found)
    return replace(chip, _ranges=outputs)


def _stay(images: Array | np.ndarray, wanted: Any) -> bool:
    """Whether images stay what they are in another type, but for rounding.

    Whole numbers that are traced count as if they fit in.
    """
    given = images.dtype
    if jnp.issubdtype(wanted, jnp.integer):
        if np.can_cast(given, wanted):
            return True
        return jnp.issubdtype(given, jnp.integer) and (
            isinstance(images, jax.core.Tracer) or _within(np.asarray(images), jnp.iinfo(wanted))
        )
    if jnp.issubdtype(wanted, jnp.complexfloating):
        return bool(jnp.issubdtype(given, jnp.inexact))
    return any(
        jnp.issubdtype(given, kind) and jnp.issubdtype(wanted, kind)
        for kind in (jnp.floating, jnp.bool_)
    )


def _within(numbers: np.ndarray, limits: Any) -> bool:
    return not numbers.size or bool(
        limits.min <= int(numbers.min()) and int(numbers.max()) <= limits.max
    )


def paths(tree: Any) -> list[str]:
    """The paths of a tree's leaves, such as "params.Dense_0.kernel"; an NNX variable is a leaf."""
    if isinstance(tree, nnx.State):
        tree = nnx.to_pure_dict(tree)
    return [
        jax.tree_util.keystr(path, simple=True, separator=".")
        for path, _ in jax.tree.leaves_with_path(tree)
    ]


def exact_logits(
    chip: Chip, params: Params, images: Shaped[Array | np.ndarray, "batch ..."]
) -> Float[Array, "batch classes"]:
    """Logits of some images without a chip's operations."""
    given = jnp.asarray(images, chip._example.dtype)
    return jax.jit(chip._exact)(jax.tree.leaves(params), given)


def _own(params: Params) -> Params:
    """The same arrays, of which those of NumPy's are copies: they may be written to later.

    Numbers become arrays without axes.
    """
    made_new = (np.ndarray, np.generic, bool, int, float, complex)
    return jax.tree.map(
        lambda leaf: jnp.array(leaf) if isinstance(leaf, made_new) else leaf, params
    )


def sample_numbers(indices: Any) -> Int[Array, " batch"]:
    """Indices as numbers of 32 bits.

    Raises:
      ValueError: they are none.
    """
    if isinstance(indices, jax.core.Tracer):
        return indices.astype(jnp.uint32)
    given = np.asarray(indices)
    if given.dtype.kind not in "iu" or (given.size and not 0 <= given.min() <= given.max() < 2**32):
        raise ValueError(f"indices must be whole numbers from 0 to 2**32 - 1; got {indices!r}")
    return jnp.asarray(given.astype(np.uint32))


def _require_logits(
    logits_fn: Callable[[Params, Array], Array],
    params: Params,
    examples: Array,
    program: ClosedJaxpr,
) -> None:
    """Refuses a function that gives no logits, or in which a sample beside another one, either of
    them as it is, black or 8 times as bright, has other logits than alone: by 0.1 % of the largest
    of that brightness, and by 1 % where 16 bits round."""
    few = examples[np.resize(np.arange(min(2, len(examples))), 2)]
    shape = jax.eval_shape(logits_fn, params, few[:1])
    if not isinstance(shape, jax.ShapeDtypeStruct) or shape.ndim != 2 or shape.shape[0] != 1:
        got = shape.shape if isinstance(shape, jax.ShapeDtypeStruct) else type(shape).__name__
        raise ValueError(
            f"the function must give logits [batch, classes], also for one image; got {got}: wrap "
            "it in one that returns the logits alone"
        )
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((params, few))):
        return

    levels = np.array([0, 1, 8])
    if not jnp.issubdtype(few.dtype, jnp.floating):
        levels = levels[:2]  # ids, of which 0 is one too
    factors = np.stack(np.meshgrid(levels, levels, indexing="ij"), axis=-1).reshape(-1, 2)

    def by(scales: np.ndarray) -> Array:
        return few * scales.reshape(-1, scales.shape[-1], *(1,) * (few.ndim - 1)).astype(few.dtype)

    def logits(params: Params, x: Array) -> Array:
        # Of an nnx.State those variables may be set alone that were made within the loop.
        return logits_fn(jax.tree.map(lambda leaf: leaf, params), x)

    @jax.jit
    def both(params: Params, pairs: Array, alike: Array) -> tuple[Array, Array]:
        beside = jax.lax.map(lambda two: logits(params, two), pairs)
        one_by_one = jax.vmap(lambda one: logits(params, one[None])[0])
        return beside, jax.lax.map(one_by_one, alike)

    with jax.default_matmul_precision(PRECISION):
        try:
            given = both(params, by(factors), by(np.stack([levels, levels], axis=-1)))
        except NotImplementedError as error:
            raise ValueError(
                "a chip maps the function over single samples by jax.vmap, which cannot map one of "
                f"its operations ({error}): write that one with others, as jax.lax.ragged_dot with "
                "jnp.einsum over all experts"
            ) from error
        beside, alone = (np.asarray(one, np.float32) for one in given)
    rounds = any(jnp.issubdtype(one, jnp.floating) and one.itemsize < 4 for one in dtypes(program))
    same = beside.shape[1:] == alone.shape[1:]
    for level, wanted in zip(levels, alone, strict=True):
        largest = np.abs(wanted[np.isfinite(wanted)]).max(initial=0.0)
        here = factors == level
        same = same and np.allclose(
            beside[here],
            np.broadcast_to(wanted, beside.shape)[here],
            *(0, (1e-2 if rounds else 1e-3) * largest),
            equal_nan=True,
        )
    if not same:
        raise ValueError(
            "an image's logits depend on the other images of its batch, as in training mode: "
            "model.eval(), use_running_average=True or deterministic=True"
        )


def _program_of(
    logits_fn: Callable[[Params, Array], Array], params: Params, sample: jax.ShapeDtypeStruct
) -> ClosedJaxpr:
    """The function's program for one sample, of `(leaves, image [1, ...])`, as its code is now."""
    leaves, treedef = jax.tree.flatten(params)
    shapes = [jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf)) for leaf in leaves]
    image = jax.ShapeDtypeStruct((1, *sample.shape), sample.dtype)
    with jax.default_matmul_precision(PRECISION):
        program, _ = trace(
            lambda given, x: logits_fn(jax.tree.unflatten(treedef, given), x), shapes, image
        )
    consts = [np.array(one) if isinstance(one, np.ndarray) else one for one in program.consts]
    return ClosedJaxpr(program.jaxpr, consts)


def _in_digital(digital_layers: Sequence[str], names: Sequence[str]) -> Callable[[str], bool]:
    """Whether a parameter's products are to stay digital."""

    def within(name: str, path: str) -> bool:
        return name == path or name.startswith(f"{path}.")

    unknown = [path for path in digital_layers if not any(within(name, path) for name in names)]
    if unknown:
        raise ValueError(
            f"digital_layers names what is not there: {', '.join(unknown)}; the parameters are "
            f"{', '.join(names)}"
        )
    return lambda name: any(within(name, path) for path in digital_layers)


def _require_layers(found: Plan, strict: bool) -> None:
    """Refuses a function of which nothing is on tiles, and tells what is digital unasked."""
    table = found.coverage
    whole = table[table["reason"].str.startswith("weights of type")]
    if len(whole):
        raise ValueError(
            f"parameter {whole['layer'].iloc[0]} has {whole['reason'].iloc[0]}: tiles hold "
            "floating weights; dequantise them, or name it in digital_layers"
        )
    if not found.layers:
        reasons = "".join(
            f"; {row.layer or 'a product'}: {row.reason}" for row in table.itertuples()
        )
        raise ValueError(
            "the function has no matrix product or convolution of images with a parameter in "
            f"params that tiles compute{reasons}"
        )
    asked = table["reason"].isin(["", "two activations", "named in digital_layers"])
    left = table[~asked]
    if len(left):
        share = left["macs"].sum() / table["macs"].sum()
        named = dict.fromkeys(
            f"{row.layer or 'a product'} ({row.reason})" for row in left.itertuples()
        )
        what = f"no tile computes {', '.join(named)}: {100 * share:.3g} % of the work"
        if strict:
            raise ValueError(f"{what}; name them in digital_layers, or leave out strict=True")
        warnings.warn(f"{what} stays digital", stacklevel=3)
