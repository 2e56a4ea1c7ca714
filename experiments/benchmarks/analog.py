"""What a forward pass of a simulated chip costs, in forward passes of the digital network.

The method is that of `experiments.benchmarks.common`. The digital network is fast beside most
chips: it is timed right before and right after each of them, and the cost of a chip is its time
over the mean of these two. Chips in JAX are compared with the same network in JAX.
"""

from __future__ import annotations

import platform
import statistics
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from rich.console import Console

from bridge.chips.memories.pcm import PCM
from bridge.chips.profiles import PROFILES, Profile, WeightNoise, eight_profiles
from experiments.benchmarks.common import (
    conclude,
    fit_batch_norm,
    load_average,
    new_table,
    random_resnet18,
    read_baseline,
    require_json_path,
    seconds,
    span,
    summary,
    turns,
    warn_of_load,
)
from experiments.settings.flags import require_device_name
from experiments.system.devices import cores, processor, require_device
from experiments.system.environment import package_versions
from experiments.system.errors import at_work
from jaxcurv.progress import progress
from jaxcurv.storage.checksums import write_json

if TYPE_CHECKING:
    import torch

Engine = Literal["fast", "aihwkit", "jax"]

TOLERANCE = 0.25
"""A cost may rise by this share above the baseline's."""

_CALIBRATION_IMAGES = 32

_PROGRAMMED = "wnoise+pcm"


@dataclass(frozen=True)
class AnalogBenchmark:
    """Measures what simulated chips cost, on a ResNet-18 with random weights."""

    width: int = 64
    """Channels of the first stage; the standard network has 64."""
    batch_size: int = 32
    """Images per batch."""
    classes: int = 10
    """Number of classes."""
    image_size: int = 32
    """Side of the images in pixels."""
    repeats: int = 5
    """Times that each chip runs; the median and the range are reported."""
    aihwkit_repeats: int = 3
    """Times that each chip runs on AIHWKit's own tiles, which are much slower; never more than
    --repeats."""
    engines: tuple[Engine, ...] = ("fast", "aihwkit")
    """Engines that compute the chips: `fast` is this project's in PyTorch, `aihwkit` are AIHWKit's
    own tiles, which take most of the time; with both, their predictions are compared. `jax` are the
    chips of bridge.analog."""
    programmings: int = 5
    """Chips of wnoise+pcm that are programmed with AIHWKit and in JAX, after a first one."""
    device: str = "cpu"
    """Device for the chips in PyTorch: cpu, cuda or cuda:N. Those in JAX are on its first."""
    json: Path | None = None
    """File to write the measured figures to, NAME.json; `none` only prints them."""
    baseline: Path | None = None
    """File of an earlier measurement (--json): exit with an error if a cost is more than a quarter
    above it; `none` compares nothing."""
    debug: bool = False
    """Show the traceback of an error."""

    def __post_init__(self) -> None:
        counts = {**self.workload(), "repeats": self.repeats}
        counts["aihwkit_repeats"] = self.aihwkit_repeats
        counts["programmings"] = self.programmings
        wrong = {name: value for name, value in counts.items() if value < 1 + (name == "classes")}
        if wrong:
            raise ValueError(
                "width, batch_size, image_size, repeats, aihwkit_repeats and programmings must be "
                f"at least 1 and classes at least 2; got {wrong}"
            )
        if not self.engines:
            raise ValueError("--engines needs at least one of fast, aihwkit and jax")
        require_device_name(self.device)

    def workload(self) -> dict[str, int]:
        """The settings that decide what is computed."""
        names = ("width", "batch_size", "classes", "image_size")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class Workload:
    """The digital network on the CPU, in evaluation mode, and its images.

    Attributes:
      network: the network that the chips are made of.
      calibration: images for the converters' ranges, float32 `[image, channel, height, width]`.
      images: the batch, in the same layout.
    """

    network: torch.nn.Module
    calibration: torch.Tensor
    images: torch.Tensor


@dataclass(frozen=True)
class Contestant:
    """A chip on one engine."""

    repeats: int
    run: Callable[[], Any]
    """The batch's logits `[image, class]`; returns when they are there."""


class Turn(NamedTuple):
    """Seconds of a contestant, and of the digital network right before and after it."""

    before: float
    seconds: float
    after: float

    @property
    def cost(self) -> float:
        """Cost of the contestant, in forward passes of the digital network."""
        return self.seconds / statistics.mean((self.before, self.after))


def run(settings: AnalogBenchmark) -> int:
    """Measures, prints, writes what is asked for and returns the process's exit code.

    Raises:
      ValueError, OSError, ModuleNotFoundError: it cannot start.
      WorkFailed: the measurement failed.
    """
    versions = _prepare(settings)
    baseline = None
    if settings.baseline is not None:
        baseline = read_baseline(
            settings.baseline,
            "benchmark analog",
            {"cost_over_digital"},
            settings.workload(),
            device(settings.device),
        )
    with at_work():
        report = {**measure_all(settings), "versions": versions}
        console = Console(highlight=False)
        show(report, console)
        if settings.json is not None:
            write_json(settings.json, report)
    if baseline is None:
        return 0
    otherwise = f"no cost is more than {TOLERANCE:.0%} above {settings.baseline}"
    return conclude(regressions(report, baseline), otherwise, console)


def _prepare(settings: AnalogBenchmark) -> dict[str, str]:
    """Checks what can be checked at once; the versions of what is measured."""
    versions = package_versions(("torch", "aihwkit"))
    if settings.json is not None:
        require_json_path(settings.json)
    require_device(settings.device, "--device")
    return versions


def device(name: str) -> str:
    """What a torch device is."""
    import torch

    return processor() if name == "cpu" else torch.cuda.get_device_name(name)


def chips() -> dict[str, Profile]:
    """What is measured, by name: the eight profiles, drift compensated, noise in each product."""
    eight = eight_profiles()
    found = dict(eight)
    found["pcm:compensated"] = Profile(memory=PCM(t_inference=3600.0, compensation="global"))
    noises = {
        "per_mvm": WeightNoise(drawn="per_mvm"),
        "per_mvm_pcm_read": WeightNoise(kind="pcm_read", drawn="per_mvm"),
    }
    for suffix, noise in noises.items():
        for name, profile in eight.items():
            if profile.wnoise is not None:
                found[f"{name}:{suffix}"] = replace(profile, wnoise=noise)
    return found


def _name(chip: str, engine: Engine) -> str:
    return chip if engine == "fast" else f"{engine}:{chip}"


def make_workload(settings: AnalogBenchmark) -> Workload:
    """ResNet-18 for small images with random weights, and normal images."""
    import numpy as np
    import torch

    torch.set_num_threads(cores())
    random = np.random.default_rng(0)

    def draw(count: int) -> torch.Tensor:
        shape = (count, settings.image_size, settings.image_size, 3)
        # In memory the channels are last, as in the batches of `bridge.predict`.
        images = random.normal(size=shape).astype(np.float32)
        return torch.from_numpy(images).permute(0, 3, 1, 2)

    network = random_resnet18(settings.classes, settings.width)
    calibration = draw(_CALIBRATION_IMAGES)
    fit_batch_norm(network, calibration)
    return Workload(network, calibration, draw(settings.batch_size))


def make_contestants(
    workload: Workload, settings: AnalogBenchmark
) -> tuple[Callable[[], torch.Tensor], dict[str, Contestant]]:
    """The digital network's forward pass, and every chip on every engine by name."""
    import bridge

    indices = range(len(workload.images))
    images = workload.images.to(settings.device)
    digital = partial(_forward, _on(workload.network, settings.device), images)
    repeats: dict[Engine, int] = {
        "fast": settings.repeats,
        "aihwkit": min(settings.aihwkit_repeats, settings.repeats),
    }
    found: dict[str, Contestant] = {}
    engines = [engine for engine in settings.engines if engine != "jax"]
    if not engines:
        return digital, found
    with progress(len(chips()), "program", "chip", side=True) as shown:
        for name, profile in chips().items():
            chip = bridge.program(
                workload.network, profile, seed=0, calibration=workload.calibration
            )
            for engine in engines:
                executable = _on(chip.on(engine).executable, settings.device)
                run = partial(_forward, executable, images, indices)
                found[_name(name, engine)] = Contestant(repeats[engine], run)
            shown.update()
    return digital, found


def make_in_jax(
    workload: Workload, settings: AnalogBenchmark
) -> tuple[Callable[[], Any], dict[str, Contestant]]:
    """The network's forward pass in JAX, and every chip there by name."""
    import jax
    import jax.numpy as jnp

    import bridge

    calibration, images = (
        jnp.asarray(tensor.permute(0, 2, 3, 1).contiguous().numpy())
        for tensor in (workload.calibration, workload.images)
    )
    logits_fn, params = _in_flax(workload, settings)
    forward = jax.jit(logits_fn)

    def digital() -> Any:
        return jax.block_until_ready(forward(params, images))

    def run(chip: bridge.jax_chips.Chip, weights: bridge.jax_chips.Programmed) -> Any:
        return jax.block_until_ready(chip.apply(weights, images))

    found: dict[str, Contestant] = {}
    with progress(len(chips()), "program in JAX", "chip", side=True) as shown:
        for name, profile in chips().items():
            chip = bridge.analog(logits_fn, params, profile, calibration)
            weights = chip.program(params, jax.random.key(0))
            found[_name(name, "jax")] = Contestant(settings.repeats, partial(run, chip, weights))
            shown.update()
    return digital, found


def _in_flax(workload: Workload, settings: AnalogBenchmark) -> tuple[Callable[..., Any], Any]:
    """The network in Flax as a function, and its parameters."""
    from flax import nnx

    import bridge
    from jaxcurv.engine.model import functional
    from jaxcurv.models import ResNet18

    like = nnx.eval_shape(
        lambda: ResNet18(
            num_classes=settings.classes, stem="cifar", width=settings.width, rngs=nnx.Rngs(0)
        )
    )
    model = bridge.from_torch(workload.network, like)
    model.eval()
    return functional(model, None)


def measure_programming(workload: Workload, settings: AnalogBenchmark) -> dict[str, Any]:
    """Seconds to program a chip of noisy weights, without converters and so without calibration.

    AIHWKit's chips are those of both engines in PyTorch.

    Returns:
      By "aihwkit" and "jax": first, with which programs are compiled in JAX, and each (`summary` of
      the others, which take turns).
    """
    import jax
    import jax.numpy as jnp

    import bridge

    profile = PROFILES[_PROGRAMMED]

    def in_torch(seed: int) -> None:
        bridge.program(workload.network, profile, seed=seed)

    makers: dict[str, Callable[[int], Any]] = {}
    if set(settings.engines) - {"jax"}:
        makers["aihwkit"] = in_torch
    if "jax" in settings.engines:
        images = jnp.asarray(workload.calibration.permute(0, 2, 3, 1).contiguous().numpy())
        logits_fn, params = _in_flax(workload, settings)
        chip = bridge.analog(logits_fn, params, profile, images)
        makers["jax"] = lambda seed: jax.block_until_ready(
            chip.program(params, jax.random.key(seed)).units
        )
    found = {name: [seconds(partial(make, 0))] for name, make in makers.items()}
    for seed in range(1, settings.programmings + 1):
        for name, make in makers.items():
            found[name].append(seconds(partial(make, seed)))
    return {name: {"first": one[0], "each": summary(one[1:])} for name, one in found.items()}


def _on(module: torch.nn.Module, device: str) -> torch.nn.Module:
    """The module itself on the CPU, a copy elsewhere."""
    return module if device == "cpu" else deepcopy(module).to(device)


def _forward(module: torch.nn.Module, images: torch.Tensor, *arguments: Any) -> torch.Tensor:
    import torch

    logits = module(images, *arguments)
    if images.is_cuda:
        torch.cuda.synchronize(images.device)
    return logits


def measure(
    digital: Callable[[], object], contestants: Mapping[str, Contestant]
) -> dict[str, list[Turn]]:
    """Every contestant's turns; all must have run before."""
    found: dict[str, list[Turn]] = {name: [] for name in contestants}
    total = sum(contestant.repeats for contestant in contestants.values())
    rounds = turns(contestants, max(contestant.repeats for contestant in contestants.values()))
    with progress(total, "measure", "run", side=True) as shown:
        for repeat, names in enumerate(rounds):
            before = seconds(digital)
            for name in names:
                if repeat >= contestants[name].repeats:
                    continue
                taken, after = seconds(contestants[name].run), seconds(digital)
                found[name].append(Turn(before, taken, after))
                before = after
                shown.update()
    return found


def measure_all(settings: AnalogBenchmark) -> dict[str, Any]:
    """The report, as JSON has it: costs, times, agreement of the engines, circumstances."""
    import torch

    from bridge.chips.prediction import full_precision

    load = load_average()
    workload = make_workload(settings)
    groups = {"digital": make_contestants(workload, settings)}
    if "jax" in settings.engines:
        groups["jax:digital"] = make_in_jax(workload, settings)
    logits: dict[str, Any] = {}
    times: dict[str, list[Turn]] = {}
    runs: dict[str, list[float]] = {}
    for digital_name, (digital, contestants) in groups.items():
        if not contestants:
            continue
        with torch.inference_mode(), full_precision():
            digital()
            with progress(len(contestants), "warm up", "chip", side=True) as shown:
                for name, contestant in contestants.items():
                    logits[name] = contestant.run()
                    shown.update()
            measured = measure(digital, contestants)
        times |= measured
        runs[digital_name] = [turn.before for found in measured.values() for turn in found]
        runs |= {name: [turn.seconds for turn in found] for name, found in measured.items()}
    costs = {name: summary(turn.cost for turn in found) for name, found in times.items()}
    in_jax = {"jax_device": _jax_device()} if "jax" in settings.engines else {}
    return {
        "cost_over_digital": {name: cost["median"] for name, cost in costs.items()},
        "ratios": costs,
        "contestants": {
            name: {
                "milliseconds": summary(1000 * s for s in taken),
                "images_per_second": settings.batch_size / statistics.median(taken),
            }
            for name, taken in runs.items()
        },
        "agreement": agreement(logits),
        "programming_seconds": measure_programming(workload, settings),
        "settings": {
            **settings.workload(),
            "repeats": settings.repeats,
            "aihwkit_repeats": settings.aihwkit_repeats,
            "engines": settings.engines,
            "programmings": settings.programmings,
        },
        "device": device(settings.device),
        **in_jax,
        "threads": {"cores": cores(), "torch": torch.get_num_threads()},
        "load_before": load,
        "platform": platform.platform(),
    }


def _jax_device() -> str:
    import jax

    first = jax.devices()[0]
    return processor() if first.platform == "cpu" else str(first.device_kind)


def agreement(logits: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """How the fast engine's logits agree with those of AIHWKit's tiles, by name of the chip.

    Noise in each product is drawn anew by each engine: chips that have it are left out.

    Returns:
      The share of equal predictions, and the norm of the logits' difference over that of AIHWKit's
      logits.
    """
    found = {}
    for name, profile in chips().items():
        frozen = profile.wnoise is None or profile.wnoise.drawn == "per_chip"
        fast, tiles = (logits.get(_name(name, engine)) for engine in ("fast", "aihwkit"))
        if frozen and fast is not None and tiles is not None:
            fast, tiles = fast.cpu(), tiles.cpu()
            found[name] = {
                "equal_predictions": float((fast.argmax(1) == tiles.argmax(1)).float().mean()),
                "relative_logit_error": float((fast - tiles).norm() / tiles.norm()),
            }
    return found


def show(report: Mapping[str, Any], console: Console) -> None:
    """Prints a report."""
    settings, threads = report["settings"], report["threads"]
    console.print(
        f"ResNet-18 of width {settings['width']}, {settings['classes']} classes, batch of "
        f"{settings['batch_size']} images of {settings['image_size']}x{settings['image_size']}, "
        f"{settings['repeats']} repeats"
    )
    warn_of_load(report["load_before"], console)
    versions = ", ".join(f"{n} {report['versions'][n]}" for n in ("python", "torch", "aihwkit"))
    console.print(
        f"{report['device']}, {threads['cores']} cores, torch with {threads['torch']} threads; "
        f"{versions}"
    )
    for name, where in {"digital": "PyTorch", "jax:digital": "JAX"}.items():
        if (digital := report["contestants"].get(name)) is None:
            continue
        console.print(
            f"digital forward pass in {where}: {digital['milliseconds']['median']:,.1f} ms "
            f"({span(digital['milliseconds'], 1)}), {digital['images_per_second']:,.1f} images/s"
        )
    wanted = goals(settings)
    for engine in settings["engines"]:
        goal = engine == "fast" and bool(wanted)
        table = new_table([engine, "ms", "cost", "range", *["goal"] * goal])
        for chip in chips():
            name = _name(chip, engine)
            ms, cost = report["contestants"][name]["milliseconds"], report["ratios"][name]
            cells = [f"{ms['median']:,.1f}", f"{cost['median']:.2f}", span(cost, 2)]
            if goal:
                cells.append(f"<= {wanted[chip]:g}")
            table.add_row(chip, *cells)
        console.print(table)
    console.print("cost: time over that of the digital forward pass")
    for name, one in report["programming_seconds"].items():
        console.print(
            f"programming a chip of {_PROGRAMMED}, {name}: {one['each']['median']:,.2f} s "
            f"({span(one['each'], 2)}), the first {one['first']:,.1f} s"
        )
    if report["agreement"]:
        table = new_table(("fast and aihwkit", "equal predictions", "error of the logits"))
        for chip, one in report["agreement"].items():
            equal, error = one["equal_predictions"], one["relative_logit_error"]
            table.add_row(chip, f"{equal:.1%}", f"{error:.1e}")
        console.print(table)


def goals(settings: Mapping[str, Any]) -> dict[str, float]:
    """The costs that the project sets itself, where it has set one for these settings."""
    if (settings["width"], settings["image_size"]) != (64, 32):
        return {}
    wanted = {}
    for name, profile in chips().items():
        if profile.wnoise is not None and profile.wnoise.drawn == "per_mvm":
            wanted[name] = 3.0 if profile.adc is None else 5.0
        else:
            wanted[name] = 1.2 if profile.adc is None else 2.0
    return wanted


def regressions(report: Mapping[str, Any], baseline: Mapping[str, Any]) -> list[str]:
    """A line for each cost that is clearly above an earlier report's, or is missing here."""
    costs, engines = report["cost_over_digital"], report["settings"]["engines"]
    lines = []
    for name, before in baseline["cost_over_digital"].items():
        now = costs.get(name)
        engine, _, chip = name.partition(":")
        if (engine if chip and engine in ("aihwkit", "jax") else "fast") not in engines:
            continue
        if now is None:
            lines.append(f"{name} cost {before:.3f} and is not measured any more")
        elif now > (1 + TOLERANCE) * before:
            lines.append(
                f"{name} cost {before:.3f} and costs {now:.3f}, {now / before - 1:.0%} more "
                f"({TOLERANCE:.0%} is allowed)"
            )
    return lines
