"""The command line: `python -m experiments COMMAND [flags]`, also installed as `jaxcurv`.

Exit codes: 0 done, 1 an error at work, 2 a wrong command line or work that cannot start (another
process works in the folder, say), 130 interrupted, 143 told to end by SIGTERM, 128 and the signal's
number where the system killed a stage.

Each command imports what it needs: the list of commands is printed at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.cli.exit_codes import exit_code_of
from experiments.cli.words import say, with_current_words
from experiments.runs.stage_names import STAGE_NAMES
from experiments.system.errors import at_work
from experiments.system.processes import named_if_ended
from jaxcurv.extras import require

if TYPE_CHECKING:
    from experiments.studies.opening import Study

_PACKAGES = (
    *("rich", "matplotlib", "jinja2", "scipy", "sklearn"),
    *("tensorflow_datasets", "PIL", "optax", "orbax"),
)
"""The modules without which no command starts. torch, AIHWKit and safetensors, which some commands
do without, are asked for by those that use them (`package_versions`)."""

_USAGE = """\
Usage: python -m experiments COMMAND ... [flags]    (also installed as jaxcurv)

One experiment, from images to report:
  run PRESET            The whole path.
  STAGE PRESET          One stage of it: train, score, export, moments, flips,
                        simulate, analyse or report.
  presets               List the presets, which are experiments with names.
  run --model PACKAGE.MODULE:FACTORY --data FOLDER
                        The whole path for a network and images of your own, in
                        PyTorch or JAX (whose chips take --simulate.engine
                        jax); later commands on it take its --out and no PRESET
                        (score and analyse the PRESET own).

More about a finished run:
  rank-correlation PRESET
                        How the curvature estimators rank the same images.
  rescore PRESET        What each choice that the paper leaves open does to the
                        curvature score and to Table I.
  validate PRESET       How the scores rank the training images beside figures
                        that others published of them.
  layers PRESET         Which layers of a chip cause failures.
  drift PRESET          Accuracy of the chips as they age.
  compare-noise PRESET  Whether other kinds of noise cause failures on the same
                        samples.
  atlas PRESET          On how many of a hundred chips each image fails.
  remedies PRESET       What can be done about failures: which remedy buys how
                        much accuracy at which energy.
  finetune PRESET       Whether noise-aware fine-tuning with weight on the
                        vulnerable images beats that on all.
  student PRESET        A tiny network that predicts from the image alone which
                        images fail.
  figure-one RUN        Fig. 1 of the paper: failure rate by curvature.
  gallery RUN           The images of lowest and of highest curvature.
  compare RUN RUN ...   Which settings differ, and by how much the results
                        moved.
  columns [NAME ...]    What the columns of a table hold.

Your own model, images, scores and predictions:
  score --model PACKAGE.MODULE:FACTORY --data FOLDER
                        Curvature of your images under your model.
  merge OUT             Join the shards that `score --shard` computed.
  analyse --scores FILE --digital FILE --analog FILE
                        Which samples fail, and what predicts it.

The paper's results (Sharma et al., see CITATION.cff):
  table-one [RUN ...]   Table I of finished runs beside the paper's.
  fit-paper             Chip settings that come nearest to Table I.
  reproduce             Run every row of Table I whose data set is there.

Speed and memory:
  benchmark curvature   Speed of the curvature estimators.
  benchmark analog      Cost of the simulated chips.
  benchmark load        Time and memory of up to a million samples.
  benchmark costs       What each score costs in forward passes.

Flags of every command:
  --help                Every flag of that command (run PRESET --help).
  --no-compilation-cache
                        Do not use, or add to, what earlier commands compiled.
  --version             Print the version (without a command)."""


def run(arguments: Sequence[str]) -> int:
    """Runs a command and returns the process's exit code."""
    return exit_code_of(partial(_dispatch, arguments), debug="--debug" in arguments)


def _dispatch(arguments: Sequence[str]) -> int | None:
    command, *rest = with_current_words(arguments or ["--help"], say)
    if command in ("-h", "--help"):
        print(_USAGE)
        return None
    if command == "--version":
        from importlib.metadata import version

        print(f"jaxcurv {version('jaxcurv')}")
        return None
    if command == "regenerate":
        raise ValueError("regenerate is for maintainers: in a checkout, python -m tools regenerate")
    if command not in _COMMANDS:
        raise ValueError(
            f"unknown command {command!r}; use {', '.join(_COMMANDS)}; what each does: --help"
        )
    require(f"jaxcurv {command}", "experiments", _PACKAGES)
    return _COMMANDS[command](rest)


def _run_stages(command: str, arguments: Sequence[str]) -> None:
    from experiments.cli.parsing import Options, parse_preset, with_own_preset
    from experiments.pipeline import runner
    from experiments.runs.frameworks import has_chips

    arguments = with_own_preset(arguments)
    options = parse_preset(Options, command, arguments)
    names = STAGE_NAMES if command == "run" else (command,)
    runner.run(
        options.experiment,
        options.out,
        names,
        preset=arguments[0],
        dry_run=options.dry_run,
        data_dir=options.data_dir,
        debug=options.debug,
        say=say,
    )
    if names[-1] == "report" and not options.dry_run:
        chips = has_chips(options.experiment, options.out)
        with at_work():
            (_print_result if chips else _print_scores)(options.out)
            print(f"\nReport: {options.out / 'report.html'}")


def _score(arguments: Sequence[str]) -> int | None:
    from experiments.cli.parsing import parse
    from experiments.settings.presets import PRESETS
    from experiments.user import model

    if not arguments:
        raise ValueError(
            f"score needs a preset ({', '.join(PRESETS)}), or --model package.module:factory and "
            "--data FOLDER"
        )
    if not arguments[0].startswith("-"):
        _run_stages("score", arguments)
        return None
    settings = parse(model.OwnModel, "score", arguments)

    def score() -> None:
        with named_if_ended("score"):
            model.run(settings)

    code = exit_code_of(score, debug=settings.debug)
    if code and settings.distributed:
        # In the usual end of a process JAX waits for the others, which wait for this one's shards.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def _analyse(arguments: Sequence[str]) -> None:
    from experiments.cli.parsing import parse
    from experiments.settings.presets import PRESETS
    from experiments.user import predictions

    if not arguments:
        raise ValueError(
            f"analyse needs a preset ({', '.join(PRESETS)}), or --scores FILE --digital FILE and "
            "--analog FILE"
        )
    if not arguments[0].startswith("-"):
        _run_stages("analyse", arguments)
    else:
        predictions.run(parse(predictions.OwnPredictions, "analyse", arguments))


def _paper_output(command: str, arguments: Sequence[str]) -> None:
    from experiments.cli.parsing import parse
    from experiments.paper import table_and_figures

    kind, work = table_and_figures.COMMANDS[command]
    work(parse(kind, command, arguments))


def _compare(arguments: Sequence[str]) -> None:
    from experiments.cli.parsing import parse
    from experiments.comparison import command

    command.compare(parse(command.Compare, "compare", arguments))


def _columns(arguments: Sequence[str]) -> None:
    from experiments.cli.columns import Columns, columns
    from experiments.cli.parsing import parse

    columns(parse(Columns, "columns", arguments))


def _fit_paper(arguments: Sequence[str]) -> None:
    from experiments.cli.parsing import parse
    from experiments.paper import fit

    fit.run(parse(fit.FitPaper, "fit-paper", arguments))


def _reproduce(arguments: Sequence[str]) -> None:
    from experiments.cli.parsing import parse
    from experiments.paper import reproduce

    reproduce.reproduce(parse(reproduce.Reproduce, "reproduce", arguments))


def _merge(arguments: Sequence[str]) -> None:
    from experiments.cli.parsing import Merge, parse
    from experiments.user import model

    model.merge(parse(Merge, "merge", arguments).out)


def _study(command: str, arguments: Sequence[str]) -> None:
    """Opens what a run left, and works on it in a folder of the command's own."""
    from experiments.cli.parsing import with_own_preset
    from experiments.cli.studies import run_study
    from experiments.studies import (
        atlas,
        compare_noise,
        drift,
        finetune,
        layers,
        rank_correlation,
        remedies,
        rescore,
        student,
        validate,
    )

    studies: dict[str, Study[Any, Any]] = {
        "rank-correlation": rank_correlation.STUDY,
        "rescore": rescore.STUDY,
        "validate": validate.STUDY,
        "layers": layers.STUDY,
        "drift": drift.STUDY,
        "compare-noise": compare_noise.STUDY,
        "atlas": atlas.STUDY,
        "remedies": remedies.STUDY,
        "finetune": finetune.STUDY,
        "student": student.STUDY,
    }
    run_study(studies[command], command, with_own_preset(arguments))


def _benchmark(arguments: Sequence[str]) -> int | None:
    from experiments.cli.parsing import parse

    subject, *flags = arguments or [""]
    if subject in ("-h", "--help"):
        print("Usage: python -m experiments benchmark curvature|analog|load|costs [flags]")
        return None
    if subject == "curvature":
        from experiments.benchmarks import curvature, curvature_contestants

        return curvature.run(
            parse(curvature_contestants.CurvatureBenchmark, "benchmark curvature", flags)
        )
    if subject == "analog":
        from experiments.benchmarks import analog

        return analog.run(parse(analog.AnalogBenchmark, "benchmark analog", flags))
    if subject == "load":
        from experiments.benchmarks import load

        load.run(parse(load.LoadBenchmark, "benchmark load", flags))
        return None
    if subject == "costs":
        from experiments.benchmarks import costs

        costs.run(parse(costs.CostsBenchmark, "benchmark costs", flags))
        return None
    raise ValueError("benchmark needs what to measure: curvature, analog, load or costs")


def _presets(arguments: Sequence[str]) -> None:
    from rich.console import Console
    from rich.table import Table

    from experiments.settings.presets import PRESETS

    if arguments and arguments[0] not in ("-h", "--help"):
        raise ValueError(f"presets takes no argument; got {' '.join(arguments)}")
    table = Table("preset", "what it runs")
    for name, preset in PRESETS.items():
        table.add_row(name, preset.description)
    Console().print(table)


def _print_result(folder: Path) -> None:
    from bridge.chips.memories.pcm import PCM
    from bridge.chips.profiles import named_profiles
    from bridge.report.tables import predictors, routers
    from bridge.report.tables.compensation import shown_beside
    from bridge.report.tables.sentences import accuracy, answers, beside, render_deciles
    from bridge.report.tables.verdict import decide
    from experiments.runs.files import read_parquet
    from experiments.runs.records import recorded_settings

    tables = {
        name: read_parquet(folder / f"{name}.parquet")
        for name in ("table_one", "deciles", "predictors", "per_class", "routing_choices")
    }
    settings = recorded_settings(folder)
    pcm = settings["simulate"]["pcm"]
    drift_seconds = pcm["t_inference"]
    profile = settings["analyse"]["profile"]
    one, compared = tables["table_one"], tables["predictors"]
    render_deciles(tables["deciles"], drift_seconds=drift_seconds)
    # Nothing else in the settings decides what stands beside a profile.
    profiles = named_profiles(pcm=PCM(compensation=pcm["compensation"]))
    other = shown_beside(one, profiles, profile=profile)
    verdict = decide(compared, tables["per_class"], profile=profile)
    sentences = [
        f"Does curvature tell which samples fail on the chip? {verdict.sentence}",
        accuracy(one, profile=profile),
        *answers(tables["deciles"], compared, profile=profile, drift_seconds=drift_seconds),
        beside(one, compared, other=other, last=int(tables["deciles"]["decile"].max())),
        predictors.verdict(compared, profile=profile),
        routers.summary(tables["routing_choices"], profile),
    ]
    for sentence in filter(None, sentences):
        print(sentence)


def _print_scores(folder: Path) -> None:
    """What a run without chips says."""
    from bridge.report.tables import digital
    from experiments.runs.files import read_parquet

    print(digital.summary(read_parquet(folder / "accuracy.parquet")))
    print(f"Samples of highest curvature: {folder / 'highest.csv'}")


_COMMANDS: dict[str, Callable[[Sequence[str]], int | None]] = {
    **{name: partial(_run_stages, name) for name in ("run", *STAGE_NAMES)},
    "score": _score,
    "analyse": _analyse,
    **{
        name: partial(_study, name)
        for name in (
            *("rank-correlation", "rescore", "validate"),
            *("layers", "drift", "compare-noise", "atlas", "student", "remedies", "finetune"),
        )
    },
    **{name: partial(_paper_output, name) for name in ("table-one", "figure-one", "gallery")},
    "compare": _compare,
    "columns": _columns,
    "fit-paper": _fit_paper,
    "reproduce": _reproduce,
    "merge": _merge,
    "benchmark": _benchmark,
    "presets": _presets,
}
