"""The command line: `python -m experiments COMMAND [flags]`, also installed as `jaxcurv`.

Exit codes: 0 done, 1 an error at work, 2 a wrong command line or work that cannot start, 130
interrupted.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import tyro
from rich.console import Console
from rich.table import Table

from experiments import own_model, own_predictions, pipeline
from experiments.presets import PRESETS
from experiments.records import STAGE_NAMES, recorded_settings
from experiments.settings import Experiment

if TYPE_CHECKING:
    from experiments.exported import Exported

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


class WrongCommandLine(Exception):
    """The command line asks for what there is not."""


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
    command, *rest = arguments or ["--help"]
    if command in ("-h", "--help"):
        print(_USAGE)
        return 0
    try:
        if command not in _COMMANDS:
            raise WrongCommandLine(f"unknown command {command!r}; use {', '.join(_COMMANDS)}")
        return _COMMANDS[command](rest)
    except WrongCommandLine as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def parse(kind: type[Parsed], command: str, arguments: Sequence[str], **options: Any) -> Parsed:
    try:
        return tyro.cli(kind, prog=f"python -m experiments {command}", args=arguments, **options)
    except ValueError as error:
        raise WrongCommandLine(error) from error


def _parse_preset(
    kind: type[ParsedOptions], command: str, arguments: Sequence[str]
) -> ParsedOptions:
    if arguments and arguments[0] in ("-h", "--help"):
        print(f"usage: python -m experiments {command} PRESET [flags]")
        print(f"presets: {', '.join(PRESETS)}; every flag: {command} PRESET --help")
        raise SystemExit(0)
    if not arguments or arguments[0].startswith("-"):
        raise WrongCommandLine(
            f"{command} needs a preset: {', '.join(PRESETS)}; its flags: {command} PRESET --help"
        )
    name, *flags = arguments
    if name not in PRESETS:
        raise WrongCommandLine(f"unknown preset {name!r}; the presets are {', '.join(PRESETS)}")
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


def _run_stages(command: str, arguments: Sequence[str]) -> int:
    options = _parse_preset(Options, command, arguments)
    names = STAGE_NAMES if command == "run" else (command,)
    console = Console(stderr=True, highlight=False)
    try:
        pipeline.run(
            options.experiment,
            options.out,
            names,
            data_dir=options.data_dir,
            debug=options.debug,
            say=console.print,
        )
    except pipeline.StageFailed as failure:
        return failure.exit_code
    except (ValueError, OSError, ModuleNotFoundError) as error:
        pipeline.show_error(error, options.debug)
        return 2
    if names[-1] == "report":
        _print_result(options.out)
    return 0


def _score(arguments: Sequence[str]) -> int:
    if not arguments:
        raise WrongCommandLine(
            f"score needs a preset ({', '.join(PRESETS)}), or --model package.module:factory and "
            "--data FOLDER"
        )
    if not arguments[0].startswith("-"):
        return _run_stages("score", arguments)
    return own_model.run(parse(own_model.OwnModel, "score", arguments))


def _analyse(arguments: Sequence[str]) -> int:
    if not arguments:
        raise WrongCommandLine(
            f"analyse needs a preset ({', '.join(PRESETS)}), or --scores FILE --digital FILE and "
            "--analog FILE"
        )
    if not arguments[0].startswith("-"):
        return _run_stages("analyse", arguments)
    return own_predictions.run(parse(own_predictions.OwnPredictions, "analyse", arguments))


def _paper_output(command: str, arguments: Sequence[str]) -> int:
    from experiments import paper_outputs

    kind, work = paper_outputs.COMMANDS[command]
    return _with_options(kind, command, arguments, work)


def _fit_paper(arguments: Sequence[str]) -> int:
    from experiments import fit_paper

    return _with_options(fit_paper.FitPaper, "fit-paper", arguments, fit_paper.run)


def _reproduce(arguments: Sequence[str]) -> int:
    from experiments import reproduce

    return _with_options(reproduce.Reproduce, "reproduce", arguments, reproduce.reproduce)


def _regenerate(arguments: Sequence[str]) -> int:
    from experiments import reproduce

    return _with_options(reproduce.Regenerate, "regenerate", arguments, reproduce.regenerate)


def _with_options(
    kind: type[Any], command: str, arguments: Sequence[str], work: Callable[[Any], None]
) -> int:
    """Parses a command's own flags, works and returns the exit code."""
    options = parse(kind, command, arguments)
    try:
        work(options)
    except pipeline.StageFailed as failure:
        return failure.exit_code
    except (ValueError, OSError, ModuleNotFoundError) as error:
        pipeline.show_error(error, options.debug)
        return 2
    except Exception as error:
        pipeline.show_error(error, options.debug)
        return 1
    return 0


def _merge(arguments: Sequence[str]) -> int:
    options = parse(Merge, "merge", arguments)
    try:
        own_model.merge(options.out)
    except (ValueError, OSError) as error:
        pipeline.show_error(error, options.debug)
        return 1
    return 0


def _agreement(arguments: Sequence[str]) -> int:
    from experiments import agreement as comparison

    @dataclass(frozen=True)
    class AgreementOptions(Options):
        agreement: comparison.Agreement = field(default_factory=comparison.Agreement)

    options = _parse_preset(AgreementOptions, "agreement", arguments)
    try:
        comparison.run(options.experiment, options.out, options.data_dir, options.agreement)
    except (ValueError, OSError, ModuleNotFoundError) as error:
        pipeline.show_error(error, options.debug)
        return 1
    return 0


def _rescore(arguments: Sequence[str]) -> int:
    from experiments import rescore as variants

    @dataclass(frozen=True)
    class RescoreOptions(Options):
        rescore: variants.Rescore = field(default_factory=variants.Rescore)

    options = _parse_preset(RescoreOptions, "rescore", arguments)
    settings = options.rescore
    out = options.out / "rescore" if settings.out is None else settings.out
    try:
        finished = variants.open_finished(
            options.experiment,
            options.out,
            out,
            options.data_dir,
            limit=settings.limit,
            batch_size=settings.batch_size,
        )
    except (ValueError, OSError, ModuleNotFoundError) as error:
        pipeline.show_error(error, options.debug)
        return 2
    try:
        variants.run(finished, options.experiment, settings, out)
    except Exception as error:
        pipeline.show_error(error, options.debug)
        return 1
    return 0


def _layers(arguments: Sequence[str]) -> int:
    from experiments import layers as by_layer

    @dataclass(frozen=True)
    class LayersOptions(Options):
        layers: by_layer.Layers = field(default_factory=by_layer.Layers)

    options = _parse_preset(LayersOptions, "layers", arguments)
    return _on_exported("layers", options, options.layers, by_layer.run)


def _drift(arguments: Sequence[str]) -> int:
    from experiments import drift as aging

    @dataclass(frozen=True)
    class DriftOptions(Options):
        drift: aging.Drift = field(default_factory=aging.Drift)

    options = _parse_preset(DriftOptions, "drift", arguments)
    return _on_exported("drift", options, options.drift, aging.run)


def _compare_noise(arguments: Sequence[str]) -> int:
    from experiments import compare_noise as comparison

    @dataclass(frozen=True)
    class CompareNoiseOptions(Options):
        compare: comparison.CompareNoise = field(default_factory=comparison.CompareNoise)

    options = _parse_preset(CompareNoiseOptions, "compare-noise", arguments)
    return _on_exported("compare-noise", options, options.compare, comparison.run)


def _on_exported(
    command: str,
    options: Options,
    settings: Any,
    work: Callable[["Exported", Experiment, Any, Path], None],
) -> int:
    """Opens the exported network of a run, works on it and returns the exit code."""
    from experiments.exported import open_exported

    out = options.out / command if settings.out is None else settings.out
    try:
        exported = open_exported(
            options.experiment,
            options.out,
            out,
            options.data_dir,
            profile=settings.profile,
            limit=settings.limit,
        )
    except (ValueError, OSError, ModuleNotFoundError) as error:
        pipeline.show_error(error, options.debug)
        return 2
    try:
        work(exported, options.experiment, settings, out)
    except Exception as error:
        pipeline.show_error(error, options.debug)
        return 1
    return 0


def _benchmark(arguments: Sequence[str]) -> int:
    subject, *flags = arguments or [""]
    if subject in ("-h", "--help"):
        print("usage: python -m experiments benchmark curvature|analog|load [flags]")
        return 0
    if subject == "curvature":
        from experiments import benchmark_curvature as curvature

        return curvature.run(parse(curvature.CurvatureBenchmark, "benchmark curvature", flags))
    if subject == "analog":
        from experiments import benchmark_analog as analog

        return analog.run(parse(analog.AnalogBenchmark, "benchmark analog", flags))
    if subject == "load":
        from experiments import benchmark_load as load

        return load.run(parse(load.LoadBenchmark, "benchmark load", flags))
    raise WrongCommandLine("benchmark needs what to measure: curvature, analog or load")


def _presets(arguments: Sequence[str]) -> int:
    table = Table("preset", "what it runs")
    for name, preset in PRESETS.items():
        table.add_row(name, preset.description)
    Console().print(table)
    return 0


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


_COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
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
