"""`python -m tools archive|regenerate|tutorials [flags]`, in a checkout."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from experiments.cli.arguments import parse
from experiments.cli.exit_codes import exit_code_of
from experiments.paper.reproduce import ROWS
from experiments.settings.presets import PRESETS
from experiments.system.errors import StageFailed, show_error
from experiments.system.processes import raise_on_sigint, raise_on_sigterm
from jaxcurv.storage.lock import lock
from tools.archive import archive, archive_fit, archive_remedies
from tools.published import PUBLISHED
from tools.regenerate import regenerate
from tools.tutorials import rerun


@dataclass(frozen=True)
class Regenerate:
    """Makes tables, figures and the page of results again from the archived per-sample tables."""

    results: Path = Path("experiments/results")
    """Folder of the archived results."""
    into: Path = Path("docs/results/table-one.md")
    """Page whose marked part is replaced."""
    debug: bool = False
    """Show the traceback of an error."""

    def run(self) -> None:
        """Makes them."""
        regenerate(self.results, self.into)


@dataclass(frozen=True)
class Archive:
    """Copies what a repository keeps of finished runs: rows of Table I and their fit, or networks
    that others trained."""

    rows: Literal["small", "full", "fit", "published", "remedies"] = "small"
    """Which runs: `small`, Table I with narrow networks; `full`, with the paper's; `fit`, the
    presets that fit their training set, and folders PRESET_* of other trainings or times;
    `published`, the folders cifar10_NAME with NAME one of tools/published_networks.py; `remedies`,
    of the folder digits what can be done about failures, without its samples."""
    runs: Path = Path("runs")
    """Folder of the runs, as the command reproduce leaves it."""
    results: Path = Path("experiments/results")
    """Folder to archive in. A row that has not been run stays as it is there."""
    debug: bool = False
    """Show the traceback of an error."""

    def run(self) -> None:
        """Copies; a row that cannot be archived stops no other.

        Raises:
          FileNotFoundError: no row is finished.
          FolderInUse: another process archives or regenerates.
          StageFailed: a row could not be archived, as was said.
        """
        rows = {
            **ROWS,
            "fit": [
                folder.name
                for preset in PRESETS
                if preset.endswith("_fit")
                for folder in sorted([self.runs / preset, *self.runs.glob(f"{preset}_*")])
            ],
            "published": [f"cifar10_{name}" for name in PUBLISHED],
            "remedies": ["digits"],
        }[self.rows]
        finished = [name for name in rows if (self.runs / name).is_dir()]
        if not finished:
            made_by = {
                "fit": "these presets",
                "published": "tools/published_networks.py",
                "remedies": "digits, remedies and finetune",
            }
            raise FileNotFoundError(
                f"no row of --rows {self.rows} in {self.runs}: run "
                f"{made_by.get(self.rows, 'reproduce')}"
            )
        work: dict[str, Callable[[Path, Path], None]] = dict.fromkeys(
            finished, archive_remedies if self.rows == "remedies" else archive
        )
        fit = f"fit_paper_{self.rows}"
        if (self.runs / fit / "fit.json").exists():
            work[fit] = archive_fit
        failed = False
        with lock(self.results):
            for name, keep in work.items():
                try:
                    keep(self.runs / name, self.results / name)
                    print(self.results / name)
                except (OSError, ValueError) as error:
                    show_error(error, self.debug)
                    failed = True
        if failed:
            raise StageFailed(1)


@dataclass(frozen=True)
class Tutorials:
    """Runs the tutorials again, docs/tutorials/*.ipynb, and keeps what they show."""

    only: tuple[str, ...] = ()
    """Names of those to run, such as routing; all if not given."""
    debug: bool = False
    """Show the traceback of an error."""

    def run(self) -> None:
        """Runs them."""
        rerun(self.only)


def main(arguments: list[str]) -> int:
    """Runs a command and returns the process's exit code."""
    commands: dict[str, type[Archive | Regenerate | Tutorials]] = {
        "archive": Archive,
        "regenerate": Regenerate,
        "tutorials": Tutorials,
    }

    def work() -> None:
        name, *flags = arguments or [""]
        usage = f"python -m tools {'|'.join(commands)} [flags]"
        if name in ("-h", "--help"):
            print(f"Usage: {usage}")
            return
        if name not in commands:
            raise ValueError(f"unknown command {name!r}; use {usage}")
        parse(commands[name], f"python -m tools {name}", flags).run()

    return exit_code_of(work, debug="--debug" in arguments)


if __name__ == "__main__":
    raise_on_sigterm()
    raise_on_sigint()
    sys.exit(main(sys.argv[1:]))
