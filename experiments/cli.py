"""The command line: `python -m experiments COMMAND [flags]`, also installed as `jaxcurv`.

Exit codes: 0 done, 1 an error at work, 2 a wrong command line or work that cannot start (another
process works in the folder, say), 130 interrupted, 143 told to end by SIGTERM, 128 and the signal's
number where the system killed a stage.
"""

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro
from rich.console import Console
from rich.table import Table

from experiments import own_model, own_predictions, pipeline
from experiments.errors import WorkFailed, at_work
from experiments.presets import PRESETS
from experiments.records import STAGE_NAMES, recorded_settings
from experiments.settings import Experiment
from experiments.termination import INTERRUPTED, TERMINATED, Terminated
from jaxcurv.lock import hold

_USAGE = f"""\
usage: python -m experiments run PRESET [flags]          the whole path, from images to report
       python -m experiments STAGE PRESET [flags]        one of: {", ".join(STAGE_NAMES)}
       python -m experiments agreement PRESET [flags]    how the estimators agree on a run's model
       python -m experiments rescore PRESET [flags]      what the score's open choices change
       python -m experiments layers PRESET [flags]       what each layer of its chips costs
       python -m experiments drift PRESET [flags]        accuracy of its chips as they age
       python -m experiments score --model package.module:factory --data FOLDER [flags]
                                                         your own model and images
       python -m experiments merge OUT                   one table from the shares of score --shard
       python -m experiments compare-noise PRESET [flags]
                                                         whether other noise fails the same samples
       python -m experiments analyse --scores FILE --digital FILE --analog FILE [flags]
                                                         your own scores and predictions
       python -m experiments table-one [RUN ...]         Table I of finished runs beside the paper's
       python -m experiments fit-paper [flags]           chips fitted on Table I's ResNet-18 rows
       python -m experiments reproduce [flags]           every row of Table I that has data, and
                                                         the page of results
       python -m experiments regenerate                  that page from the stored tables
       python -m experiments figure-one|gallery RUN      the paper's figures of a finished run
       python -m experiments benchmark curvature [flags] speed of the estimators
       python -m experiments benchmark analog [flags]    cost of the simulated chips
       python -m experiments benchmark load [flags]      time and memory of a million samples
       python -m experiments presets                     the presets
       python -m experiments COMMAND ... --help          every flag"""

Parsed = TypeVar("Parsed")
ParsedOptions = TypeVar("ParsedOptions", bound="Options")
Opened = TypeVar("Opened")


@dataclass(frozen=True)
class Options:
    """What a command is given besides its preset's name."""

    experiment: Annotated[Experiment, tyro.conf.arg(name="")]
    out: Path
    """Folder of the results; an interrupted or changed run goes on from what is there."""
    data_dir: Path | None = None
    """Folder of the data sets; by default $TFDS_DATA_DIR or ~/tensorflow_datasets."""
    debug: bool = False
    """Show tracebacks."""


@dataclass(frozen=True)
class Merge:
    """Which table is made of its pieces."""

    out: tyro.conf.Positional[Path]
    """The table that `score --shard` was given as --out."""
    debug: bool = False
    """Show tracebacks."""


def run(arguments: Sequence[str]) -> int:
    """Runs a command and returns the process's exit code."""
    return _exit_code(partial(_dispatch, arguments), debug="--debug" in arguments)


def _exit_code(work: Callable[[], int | None], *, debug: bool = False) -> int:
    """The exit code of a command, whose error is one line on standard error.

    Args:
      work: the command; returns its exit code, None for 0.
      debug: show tracebacks.
    """
    try:
        try:
            code = work() or 0
        except SystemExit as end:  # tyro's, which has printed help, or what is wrong with a flag
            code = int(end.code or 0)
        sys.stdout.flush()  # now, while a reader that has gone can be told from an error
        return code
    except KeyboardInterrupt:
        return INTERRUPTED
    except Terminated:
        return TERMINATED
    except pipeline.StageFailed as failure:
        return failure.exit_code
    except Exception as error:
        shown = error.error if isinstance(error, WorkFailed) else error
        if isinstance(shown, BrokenPipeError) and _is_unread():
            return 1
        pipeline.show_error(shown, debug)
        return 2 if isinstance(error, ValueError | OSError | ImportError) else 1


def _is_unread() -> bool:
    """Whether nobody reads standard output any more, as after `| head`; Python's end is then quiet.

    A broken pipe may be another one, such as that to a stage's process.
    """
    try:
        print(flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False


def _dispatch(arguments: Sequence[str]) -> int | None:
    command, *rest = arguments or ["--help"]
    if command in ("-h", "--help"):
        print(_USAGE)
        return None
    if command not in _COMMANDS:
        raise ValueError(f"unknown command {command!r}; use {', '.join(_COMMANDS)}")
    return _COMMANDS[command](rest)


def parse(kind: type[Parsed], command: str, arguments: Sequence[str], **options: Any) -> Parsed:
    """A command's flags.

    Raises:
      ValueError: a setting is refused.
      SystemExit: a flag is, or help was asked for; both were printed.
    """
    return tyro.cli(kind, prog=f"python -m experiments {command}", args=arguments, **options)


def _parse_preset(
    kind: type[ParsedOptions], command: str, arguments: Sequence[str]
) -> ParsedOptions:
    if arguments and arguments[0] in ("-h", "--help"):
        print(f"usage: python -m experiments {command} PRESET [flags]")
        print(f"presets: {', '.join(PRESETS)}; every flag: {command} PRESET --help")
        raise SystemExit(0)
    if not arguments or arguments[0].startswith("-"):
        raise ValueError(
            f"{command} needs a preset: {', '.join(PRESETS)}; its flags: {command} PRESET --help"
        )
    name, *flags = arguments
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}; the presets are {', '.join(PRESETS)}")
    preset = PRESETS[name]
    default = kind(preset.experiment, out=Path("runs") / name)
    return parse(
        kind,
        f"{command} {name}",
        flags,
        description=preset.description,
        default=default,
        # Where a setting is one of several classes: the fields of its default are flags too.
        config=(tyro.conf.CascadeSubcommandArgs,),
    )


def _run_stages(command: str, arguments: Sequence[str]) -> None:
    options = _parse_preset(Options, command, arguments)
    names = STAGE_NAMES if command == "run" else (command,)
    console = Console(stderr=True, highlight=False)
    pipeline.run(
        options.experiment,
        options.out,
        names,
        data_dir=options.data_dir,
        debug=options.debug,
        say=console.print,
    )
    if names[-1] == "report":
        with at_work():
            _print_result(options.out)


def _score(arguments: Sequence[str]) -> int | None:
    if not arguments:
        raise ValueError(
            f"score needs a preset ({', '.join(PRESETS)}), or --model package.module:factory and "
            "--data FOLDER"
        )
    if not arguments[0].startswith("-"):
        _run_stages("score", arguments)
        return None
    settings = parse(own_model.OwnModel, "score", arguments)
    code = _exit_code(partial(own_model.run, settings), debug=settings.debug)
    if code and settings.distributed:
        # In the usual end of a process JAX waits for the others, which wait for this one's share.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def _analyse(arguments: Sequence[str]) -> None:
    if not arguments:
        raise ValueError(
            f"analyse needs a preset ({', '.join(PRESETS)}), or --scores FILE --digital FILE and "
            "--analog FILE"
        )
    if not arguments[0].startswith("-"):
        _run_stages("analyse", arguments)
    else:
        own_predictions.run(parse(own_predictions.OwnPredictions, "analyse", arguments))


def _paper_output(command: str, arguments: Sequence[str]) -> None:
    from experiments import paper_outputs

    kind, work = paper_outputs.COMMANDS[command]
    work(parse(kind, command, arguments))


def _fit_paper(arguments: Sequence[str]) -> None:
    from experiments import fit_paper

    fit_paper.run(parse(fit_paper.FitPaper, "fit-paper", arguments))


def _reproduce(arguments: Sequence[str]) -> None:
    from experiments import reproduce

    reproduce.reproduce(parse(reproduce.Reproduce, "reproduce", arguments))


def _regenerate(arguments: Sequence[str]) -> None:
    from experiments import reproduce

    reproduce.regenerate(parse(reproduce.Regenerate, "regenerate", arguments))


def _merge(arguments: Sequence[str]) -> None:
    own_model.merge(parse(Merge, "merge", arguments).out)


def _agreement(arguments: Sequence[str]) -> None:
    from experiments import agreement as comparison

    @dataclass(frozen=True)
    class AgreementOptions(Options):
        agreement: comparison.Agreement = field(default_factory=comparison.Agreement)

    options = _parse_preset(AgreementOptions, "agreement", arguments)
    settings = options.agreement
    opening = partial(comparison.open_trained, limit=settings.limit)
    _beside_stages("agreement", options, settings, opening, comparison.run)


def _rescore(arguments: Sequence[str]) -> None:
    from experiments import rescore as variants

    @dataclass(frozen=True)
    class RescoreOptions(Options):
        rescore: variants.Rescore = field(default_factory=variants.Rescore)

    options = _parse_preset(RescoreOptions, "rescore", arguments)
    settings = options.rescore
    opening = partial(variants.open_finished, limit=settings.limit, batch_size=settings.batch_size)
    _beside_stages("rescore", options, settings, opening, variants.run)


def _layers(arguments: Sequence[str]) -> None:
    from experiments import layers as by_layer

    @dataclass(frozen=True)
    class LayersOptions(Options):
        layers: by_layer.Layers = field(default_factory=by_layer.Layers)

    options = _parse_preset(LayersOptions, "layers", arguments)
    _on_exported("layers", options, options.layers, by_layer.run)


def _drift(arguments: Sequence[str]) -> None:
    from experiments import drift as aging

    @dataclass(frozen=True)
    class DriftOptions(Options):
        drift: aging.Drift = field(default_factory=aging.Drift)

    options = _parse_preset(DriftOptions, "drift", arguments)
    _on_exported("drift", options, options.drift, aging.run)


def _compare_noise(arguments: Sequence[str]) -> None:
    from experiments import compare_noise as other_noise

    @dataclass(frozen=True)
    class CompareNoiseOptions(Options):
        compare: other_noise.CompareNoise = field(default_factory=other_noise.CompareNoise)

    options = _parse_preset(CompareNoiseOptions, "compare-noise", arguments)
    _on_exported("compare-noise", options, options.compare, other_noise.run)


def _on_exported(
    command: str, options: Options, settings: Any, work: Callable[..., object]
) -> None:
    from experiments.exported import open_exported

    opening = partial(open_exported, profile=settings.profile, limit=settings.limit)
    _beside_stages(command, options, settings, opening, work)


def _beside_stages(
    command: str,
    options: Options,
    settings: Any,
    opening: Callable[[Experiment, Path, Path, Path | None], Opened],
    work: Callable[[Opened, Experiment, Any, Path], object],
) -> None:
    """Opens what a run left, and works on it in a folder of the command's own."""
    out = options.out / command if settings.out is None else settings.out
    opened = opening(options.experiment, options.out, out, options.data_dir)
    with hold(out), at_work():
        work(opened, options.experiment, settings, out)


def _benchmark(arguments: Sequence[str]) -> int | None:
    subject, *flags = arguments or [""]
    if subject in ("-h", "--help"):
        print("usage: python -m experiments benchmark curvature|analog|load [flags]")
        return None
    if subject == "curvature":
        from experiments import benchmark_curvature as curvature

        return curvature.run(parse(curvature.CurvatureBenchmark, "benchmark curvature", flags))
    if subject == "analog":
        from experiments import benchmark_analog as analog

        return analog.run(parse(analog.AnalogBenchmark, "benchmark analog", flags))
    if subject == "load":
        from experiments import benchmark_load as load

        load.run(parse(load.LoadBenchmark, "benchmark load", flags))
        return None
    raise ValueError("benchmark needs what to measure: curvature, analog or load")


def _presets(arguments: Sequence[str]) -> None:
    if arguments and arguments[0] not in ("-h", "--help"):
        raise ValueError(f"presets takes no argument; got {' '.join(arguments)}")
    table = Table("preset", "what it runs")
    for name, preset in PRESETS.items():
        table.add_row(name, preset.description)
    Console().print(table)


def _print_result(folder: Path) -> None:
    from experiments import analysis, prediction, routing
    from experiments.artefacts import read_parquet

    tables = {
        name: read_parquet(folder / f"{name}.parquet")
        for name in ("deciles", "predictors", "routing_choices")
    }
    drift_seconds = recorded_settings(folder)["simulate"]["pcm"]["t_inference"]
    analysis.render_deciles(tables["deciles"], drift_seconds=drift_seconds)
    sentences = analysis.answers(
        tables["deciles"], tables["predictors"], drift_seconds=drift_seconds
    )
    sentences.append(prediction.verdict(tables["predictors"]))
    sentences.append(routing.summary(tables["routing_choices"]))
    for sentence in filter(None, sentences):
        print(sentence)
    print(f"\nReport: {folder / 'report.html'}")


_COMMANDS: dict[str, Callable[[Sequence[str]], int | None]] = {
    **{name: partial(_run_stages, name) for name in ("run", *STAGE_NAMES)},
    "score": _score,
    "analyse": _analyse,
    "agreement": _agreement,
    "rescore": _rescore,
    "layers": _layers,
    "drift": _drift,
    "compare-noise": _compare_noise,
    **{name: partial(_paper_output, name) for name in ("table-one", "figure-one", "gallery")},
    "fit-paper": _fit_paper,
    "reproduce": _reproduce,
    "regenerate": _regenerate,
    "merge": _merge,
    "benchmark": _benchmark,
    "presets": _presets,
}
