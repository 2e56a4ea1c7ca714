"""Hardware profiles: which non-idealities a chip has, with their physical settings.

Three non-idealities, each present or absent, make the paper's eight profiles, "ideal" included:

- adc: tile outputs quantised uniformly between `-range` and `range`;
- wnoise: Gaussian noise on the effective weights, frozen per chip or redrawn for each operation;
- the memory: programming noise, drift and read noise of its devices; phase-change memory ("pcm")
  unless another is chosen (`bridge.chips.memories`).

Four more profiles have names: a coarse ADC, weight noise of each operation, and drift compensated,
alone and with the other two (`named_profiles`). Two non-idealities are in none of these and may be
added to a profile of your own: dac, tile inputs quantised, and onoise, Gaussian noise of the tile
outputs.
"""

import dataclasses
import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any, Final, Literal

from bridge.checks import require_finite
from bridge.chips.memories.conductances import MappedPairs, Pairs, SinglePair
from bridge.chips.memories.pcm import PCM, Hermes
from bridge.chips.memories.protocol import Memory, require_memory
from bridge.chips.memories.reram import ReRamCMO, ReRamWan2022
from jaxcurv.settings import is_whole, make_plain, plain

TILE_SIZE = 512
"""Rows and columns of a crossbar tile; larger layers are split evenly."""

FULL_PROFILE: Final = "adc+wnoise+pcm"
"""The paper's profile with all three non-idealities."""

FULL_COMPENSATED = "adc+wnoise+pcm_gdc"
"""The same with global drift compensation of the PCM."""

COARSE_ADC, NOISE_OF_OPERATIONS, COMPENSATED = "adc_coarse", "wnoise_mvm", "pcm_gdc"

COARSE_BITS = 5
"""Bits of the coarse ADC."""


@dataclass(frozen=True)
class ADC:
    """Uniform quantisation of each tile's outputs, with saturation. Inputs have a `DAC`.

    An ADC of b bits has `2**b - 1` symmetric codes, `range / (2**(b - 1) - 1)` apart.

    Attributes:
      bits: resolution in bits, 2 to 23.
      range: largest output that is represented; beyond it the ADC saturates. `calibrated`: found
        for each tile from the outputs of the ideal weights on calibration images. A number is in
        units of a tile whose largest weight is 1 and whose largest input is 1; under a DAC of a
        fixed range its inputs are in units of that.
      percentile: percentile of the output magnitudes on the calibration images that a calibrated
        range covers, above 0 and at most 100; 100 covers the largest.
      headroom: factor on a calibrated range, and so on the step; above 1 it leaves room for larger
        outputs, below 1 more of them saturate. A range that is a number has none.
    """

    bits: int = 9
    range: Literal["calibrated"] | float = "calibrated"
    percentile: float = 100.0
    headroom: float = 1.0

    def __post_init__(self) -> None:
        _check_converter(self, "ADC", "calibrated")
        require_finite("ADC headroom", self.headroom, positive=True)
        if self.headroom != 1 and self.range != "calibrated":
            raise ValueError(
                "ADC headroom is a factor on a calibrated range; multiply a range of your own"
            )


@dataclass(frozen=True)
class DAC:
    """Uniform quantisation of each tile's inputs: AIHWKit's `forward.inp_res`.

    A DAC of b bits has `2**b - 1` symmetric codes, `unit / (2**(b - 1) - 1)` apart, ties to even.
    The unit of inputs is that of the ADC's range and of output noise too.

    Attributes:
      bits: resolution in bits, 2 to 23.
      range: the unit of inputs. `max`: the largest magnitude of each input vector (of a
        convolution, each patch) of a tile, as without a DAC; nothing saturates. A number: one for
        all layers, in units of the activations; larger inputs saturate. `calibrated`: a number for
        each layer, found from its inputs on the calibration images.
      percentile: percentile of the magnitudes of a layer's inputs that a calibrated range covers,
        above 0 and at most 100, by nearest rank; 100 covers the largest.
    """

    bits: int = 7
    range: Literal["max", "calibrated"] | float = "max"
    percentile: float = 100.0

    def __post_init__(self) -> None:
        _check_converter(self, "DAC", "max", "calibrated")


def _check_converter(converter: Any, what: str, *ranges: str) -> None:
    """Raises ValueError for bad settings of an ADC or DAC; `ranges` are those with a name."""
    make_plain(converter)
    if not is_whole(converter.bits) or not 2 <= converter.bits < 24:
        raise ValueError(f"{what} bits must be an integer from 2 to 23, got {converter.bits!r}")
    if converter.range not in ranges:
        named = " or ".join(f'"{name}"' for name in ranges)
        require_finite(f"{what} range, unless {named},", converter.range, positive=True)
    require_finite(f"{what} percentile", converter.percentile, positive=True)
    if converter.percentile > 100:
        raise ValueError(f"{what} percentile must be at most 100, got {converter.percentile}")


@dataclass(frozen=True)
class OutputNoise:
    """Gaussian noise of each tile's outputs, ahead of the ADC: AIHWKit's `forward.out_noise`.

    Drawn anew for each matrix-vector product and output, of the chip, the layer and the sample, as
    weight noise is that is drawn `per_mvm`. The noises of a layer's columns of tiles add up. Where
    each input vector has a unit of its own, one of zeros has no noise; AIHWKit's own tile gives it
    noise in the unit 1, unless all that it is given at once is zeros.

    Attributes:
      sigma: standard deviation, in units of the outputs of a tile whose largest weight is 1 and
        whose unit of inputs is 1, as a number for `ADC.range` is; above 0.
    """

    sigma: float = 0.04

    def __post_init__(self) -> None:
        make_plain(self)
        require_finite("output noise sigma", self.sigma, positive=True)


@dataclass(frozen=True)
class WeightNoise:
    """Gaussian noise of the weights, AIHWKit's `w_noise`.

    Noise drawn per matrix-vector product acts as if each weight fluctuated: for an input x the
    outputs of a tile of weights W (the largest 1) get independent Gaussian noise of standard
    deviation `sigma ||x||_2` (constant) or `sigma sqrt(sum_j |W_ij| x_j^2)` (pcm_read).

    Attributes:
      sigma: standard deviation of the noise, as a fraction of the tile's largest weight.
      kind: spread of the noise: `constant`, the same for every weight; `pcm_read`, growing with the
        square root of the weight's magnitude, up to sigma at the largest weight.
      drawn: when the noise is drawn: `per_chip`, once for each chip and then fixed; `per_mvm`, anew
        for each matrix-vector product.
    """

    sigma: float = 0.02
    kind: Literal["constant", "pcm_read"] = "constant"
    drawn: Literal["per_chip", "per_mvm"] = "per_chip"

    def __post_init__(self) -> None:
        make_plain(self)
        require_finite("weight noise sigma", self.sigma)
        if self.kind not in ("constant", "pcm_read"):
            raise ValueError(f"weight noise must be constant or pcm_read, got {self.kind!r}")
        if self.drawn not in ("per_chip", "per_mvm"):
            raise ValueError(f"weight noise is drawn per_chip or per_mvm, got {self.drawn!r}")


@dataclass(frozen=True)
class Clipping:
    """Whether and how each tile's weights are clipped before programming.

    Afterwards the weights are rescaled to the full conductance range. A layer larger than a tile is
    clipped tile by tile.

    Attributes:
      type: kind of clipping, by AIHWKit's names: `none`; `layer_gaussian`, at a number of standard
        deviations of the tile's weights; `fixed_value`, at a fraction of the tile's largest weight.
      sigma: standard deviations at which `layer_gaussian` clips.
      fixed_value: fraction of the tile's largest weight at which `fixed_value` clips.
    """

    type: Literal["none", "layer_gaussian", "fixed_value"] = "none"
    sigma: float = 2.5
    fixed_value: float = 1.0

    def __post_init__(self) -> None:
        make_plain(self)
        if self.type not in ("none", "layer_gaussian", "fixed_value"):
            raise ValueError(f"clipping is none, layer_gaussian or fixed_value, got {self.type!r}")
        require_finite("clipping sigma", self.sigma, positive=True)
        require_finite("clipping fixed_value", self.fixed_value, positive=True)


@dataclass(frozen=True)
class Profile:
    """A combination of non-idealities: converters, noise, a memory, and clipping.

    Each is a field, and None leaves it out: `Profile(adc=ADC(bits=8), memory=PCM())`.
    `bridge.PROFILES` has those that have a name; see `named_profiles`. Their PCM is read 20 s after
    programming.

    Attributes:
      adc: ADC at each tile's outputs.
      wnoise: Gaussian noise of the weights.
      memory: devices that the weights are programmed into.
      clipping: clipping of each tile's weights before programming.
      dac: DAC at each tile's inputs.
      out_noise: Gaussian noise of each tile's outputs, ahead of the ADC.
    """

    adc: ADC | None = None
    wnoise: WeightNoise | None = None
    memory: Memory | None = None
    clipping: Clipping = field(default_factory=Clipping)
    dac: DAC | None = None
    out_noise: OutputNoise | None = None

    def __post_init__(self) -> None:
        kinds: dict[str, tuple[type, ...]] = {
            "adc": (ADC, type(None)),
            "wnoise": (WeightNoise, type(None)),
            "clipping": (Clipping,),
            "dac": (DAC, type(None)),
            "out_noise": (OutputNoise, type(None)),
        }
        for name, kind in kinds.items():
            if not isinstance(getattr(self, name), kind):
                wanted = " or ".join(one.__name__ for one in kind if one is not type(None))
                raise ValueError(
                    f"a profile's {name} must be a {wanted}, got {getattr(self, name)!r}"
                )
        if self.memory is not None:
            require_memory(self.memory)
            to_json(self.memory)  # which refuses what no file could hold

    @property
    def name(self) -> str:
        """Such as "adc+pcm"; "ideal" if there is no non-ideality. Clipping is not one.

        In this order: dac, adc, wnoise, onoise, the memory's.
        """
        parts = {
            "dac": self.dac,
            "adc": self.adc,
            "wnoise": self.wnoise,
            "onoise": self.out_noise,
        }
        names = [name for name, part in parts.items() if part is not None]
        if self.memory is not None:
            names.append(self.memory.name)
        return "+".join(names) or "ideal"

    @property
    def noise_of_operations(self) -> WeightNoise | None:
        """The noise of the weights that is drawn anew for each matrix-vector product.

        None where there is none, or where it is drawn once for each chip and then fixed.
        `OutputNoise` is drawn for each product too, and is not in it.
        """
        noise = self.wnoise
        return noise if noise is not None and noise.drawn == "per_mvm" else None

    @property
    def of_weights(self) -> "Profile | None":
        """What of it a chip's weights get when they are programmed: memory, clipping, and noise
        that is drawn once for each chip; None where they get no noise."""
        wnoise = None if self.noise_of_operations is not None else self.wnoise
        if wnoise is None and self.memory is None:
            return None
        return Profile(wnoise=wnoise, memory=self.memory, clipping=self.clipping)

    @property
    def draws_nothing(self) -> bool:
        """Whether all its chips are one chip: it has no noise, and no memory."""
        return self.wnoise is None and self.out_noise is None and self.memory is None

    @property
    def needs_calibration(self) -> bool:
        """Whether a range of its converters is found on calibration images."""
        return any(one is not None and one.range == "calibrated" for one in (self.adc, self.dac))

    @property
    def fixed_inputs(self) -> bool:
        """Whether a layer's inputs have one unit, and not each input vector its own."""
        return self.dac is not None and self.dac.range != "max"


class UnknownProfile(KeyError, ValueError):
    """A name that no profile has; the message says which ones there are."""

    def __str__(self) -> str:
        return str(self.args[0])


class NamedProfiles(dict[str, Profile]):
    """Profiles by name; an unknown one is refused with the one that was probably meant.

    Raises:
      UnknownProfile: a KeyError and a ValueError.
    """

    def __missing__(self, name: object) -> Profile:
        meant = _nearest(name, list(self)) if isinstance(name, str) else None
        hint = f" (did you mean {meant!r}?)" if meant else ""
        raise UnknownProfile(
            f"no profile is named {name!r}{hint}: there are {', '.join(self)}; for other settings "
            "make a Profile, such as Profile(adc=ADC(bits=8))"
        )


def _nearest(name: str, names: Sequence[str]) -> str | None:
    """The name of the same parts, in whatever order, case and, nearly, spelling."""

    def parts(one: str) -> set[str]:
        return set(re.findall(r"\w+", one.replace("_", " ").lower()))

    known = set().union(*map(parts, names))
    close = [difflib.get_close_matches(part, known, n=1) for part in parts(name)]
    meant = {part for found in close for part in found}
    return next((one for one in names if parts(one) == meant), None)


def eight_profiles(
    adc: ADC | None = None,
    wnoise: WeightNoise | None = None,
    memory: Memory | None = None,
    clipping: Clipping | None = None,
) -> dict[str, Profile]:
    """The eight profiles by name, from "ideal" to "adc+wnoise+pcm".

    Args:
      adc, wnoise, memory: settings where the non-ideality is present; None takes its defaults, for
        the memory those of `PCM`.
      clipping: None for none; applies to all eight, "ideal" included, so that they differ in
        nothing else.
    """
    settings = {
        "adc": adc or ADC(),
        "wnoise": wnoise or WeightNoise(),
        "memory": memory or PCM(),
    }
    combined = [
        Profile(**{name: settings[name] for name in names}, clipping=clipping or Clipping())  # type: ignore[arg-type]
        for count in range(len(settings) + 1)
        for names in combinations(settings, count)
    ]
    return NamedProfiles({profile.name: profile for profile in combined})


def named_profiles(
    adc: ADC | None = None,
    wnoise: WeightNoise | None = None,
    pcm: PCM | None = None,
    clipping: Clipping | None = None,
    coarse_bits: int = COARSE_BITS,
) -> dict[str, Profile]:
    """The paper's eight profiles and four more, by name.

    Each of the four changes what the paper leaves open or does without:

    - adc_coarse: an ADC of fewer bits, where 9 bits of a calibrated range change next to nothing;
    - wnoise_mvm: weight noise drawn anew for each matrix-vector product ("mvm"), not once a chip;
    - pcm_gdc: PCM with global drift compensation ("gdc"), without which drift at frozen BatchNorm
      statistics shifts the logits of all samples alike;
    - adc+wnoise+pcm_gdc: all three, with the same compensation.

    >>> profile = named_profiles(adc=ADC(bits=6))["adc+wnoise+pcm"]
    >>> profile.adc.bits, profile.wnoise.sigma, profile.memory.t_inference
    (6, 0.02, 20.0)

    Args:
      adc, wnoise, pcm: settings where the non-ideality is present; None takes its defaults.
      clipping: None for none; applies to every profile, "ideal" included.
      coarse_bits: bits of adc_coarse.
    """
    adc, wnoise, pcm = adc or ADC(), wnoise or WeightNoise(), pcm or PCM()
    clipping = clipping or Clipping()
    compensated = dataclasses.replace(pcm, compensation="global")
    return NamedProfiles(
        eight_profiles(adc, wnoise, pcm, clipping)
        | {
            COARSE_ADC: Profile(adc=dataclasses.replace(adc, bits=coarse_bits), clipping=clipping),
            NOISE_OF_OPERATIONS: Profile(
                wnoise=dataclasses.replace(wnoise, drawn="per_mvm"), clipping=clipping
            ),
            COMPENSATED: Profile(memory=compensated, clipping=clipping),
            FULL_COMPENSATED: Profile(adc, wnoise, compensated, clipping),
        }
    )


SHIPPED: tuple[type, ...] = (PCM, Hermes, ReRamWan2022, ReRamCMO)
"""The memories that are not the user's own."""

_KINDS: dict[str, type] = {
    kind.__name__: kind
    for kind in (
        *(Profile, ADC, WeightNoise, Clipping, DAC, OutputNoise),
        *SHIPPED,
        *(SinglePair, Pairs, MappedPairs),
    )
}
"""What JSON names."""

_NAMES_IN_FILES = {kind: {"mapping": "converter"} for kind in ("PCM", "Hermes", "ReRamWan2022")}
"""Fields of a kind that files name as they were first named: finished chips and searches are kept
under a hash of this JSON."""


_LATER = {"Profile": ("dac", "out_noise"), "ADC": ("headroom",)}
"""Fields of a kind that files leave out where they have their default: the hashes of those without
stay."""


def to_json(setting: Any) -> Any:
    """A profile, or a part of one, as JSON holds it; the inverse of `from_json`.

    Raises:
      ValueError: a memory of your own has a field that JSON cannot hold, or the class name of
        another setting.
    """
    if dataclasses.is_dataclass(setting):
        kind = type(setting)
        if _KINDS.get(kind.__name__, kind) is not kind:
            raise ValueError(f"{kind.__name__} is a setting of bridge's: rename {kind!r}")
        in_file = _NAMES_IN_FILES.get(kind.__name__, {})
        fields = {
            in_file.get(f.name, f.name): to_json(getattr(setting, f.name))
            for f in dataclasses.fields(setting)
            if f.name not in _LATER.get(kind.__name__, ()) or getattr(setting, f.name) != f.default
        }
        return {"kind": kind.__name__, "settings": fields}
    setting = plain(setting)
    if isinstance(setting, tuple):
        return [to_json(value) for value in setting]
    if type(setting) not in (bool, int, float, str, type(None)):
        raise ValueError(
            "a memory's fields must be numbers, texts, None, tuples or dataclasses, for its file "
            f"to keep them; got {setting!r}"
        )
    return setting


def from_json(value: Any, memories: Sequence[type] = ()) -> Any:
    """A profile from what `to_json` returned.

    Args:
      value: what `json.loads` gives.
      memories: classes of your own memories, and of dataclasses in their fields.

    Raises:
      ValueError: an unknown kind, unknown settings or a bad value.
    """
    if isinstance(value, list):
        return tuple(from_json(one, memories) for one in value)
    if not isinstance(value, dict):
        return value
    if value.keys() != {"kind", "settings"} or not isinstance(value["settings"], dict):
        raise ValueError(f"not a profile's setting: {value}")
    kinds = {kind.__name__: kind for kind in memories} | _KINDS
    if value["kind"] not in kinds:
        raise ValueError(
            f"{value['kind']!r} is not a setting known here; if it is a memory of your own, or "
            "what a field of one holds, pass its class too: memories=(ITS_CLASS,)"
        )
    in_file = _NAMES_IN_FILES.get(value["kind"], {})
    names = {stored: name for name, stored in in_file.items()}
    settings = {
        str(names.get(name, name)): from_json(one, memories)
        for name, one in value["settings"].items()
    }
    try:
        return kinds[value["kind"]](**settings)
    except TypeError as error:
        raise ValueError(f"not the settings of {value['kind']}: {error}") from error


PROFILES = named_profiles()
"""Profiles by name, with default settings and no clipping: the paper's eight, ideal, adc, wnoise,
pcm, adc+wnoise, adc+pcm, wnoise+pcm and adc+wnoise+pcm (adc is the converter, wnoise the weight
noise, pcm phase-change memory), and the four that `named_profiles` adds."""
