"""Every block of Python and every command on README and the pages of docs/ works."""

import re
import shlex
import tomllib
from dataclasses import asdict, replace
from pathlib import Path

import pandas as pd
import pytest

import experiments.cli.arguments
import tools.__main__
from experiments.cli import commands
from experiments.runs.remembered import remember
from experiments.settings.presets import OWN, PRESETS
from tests.conftest import ROOT
from tests.pages import PAGES, README, blocks_of, name_of, run_page, write_digits
from tests.shallow_resnet import replace_resnet18
from tools import site_pages

MADE = {
    "docs/guides/jax-model.md": {"scores.parquet"},
    "docs/guides/in-python.md": {"report.html"},
    "docs/guides/chips.md": {"chip.safetensors"},
    "docs/guides/own-estimator.md": {"scores.parquet"},
    "docs/guides/real-chip.md": {"report.html"},
    "README.md": {"report.html"},
}
"""Files that a page's blocks leave."""

WITH_CODE = [page for page in PAGES if blocks_of(page)]


@pytest.mark.parametrize("page", WITH_CODE, ids=name_of)
def test_a_page_s_blocks_run_in_order(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace_resnet18(monkeypatch)  # compiling the whole one takes most of the time
    if page == README:
        write_digits(tmp_path / "images" / "test")
    run_page(page, tmp_path, monkeypatch)
    assert {path.name for path in tmp_path.iterdir()} >= MADE.get(name_of(page), set())
    if (report := tmp_path / "report.html").exists():
        assert "Which score predicts failure" in report.read_text()


def test_pages_that_leave_files_have_code() -> None:
    assert MADE.keys() <= {name_of(page) for page in WITH_CODE}


@pytest.mark.parametrize(
    ("page", "call"),
    [
        ("README.md", "jaxcurv.score_dataset("),
        ("README.md", "study("),
        ("README.md", "bridge.analog("),
        ("docs/guides/jax-model.md", "jaxcurv.score_dataset("),
        ("docs/guides/in-python.md", "bridge.simulate("),
        ("docs/guides/in-python.md", "bridge.score(network, images"),
        ("docs/guides/in-python.md", "bridge.failure_table("),
        ("docs/guides/flip-probability.md", "jaxcurv.flip_probability("),
        ("docs/guides/chips-in-jax.md", "bridge.analog("),
    ],
)
def test_a_first_result_is_ten_lines_at_most(page: str, call: str) -> None:
    block = next(block for block in blocks_of(ROOT / page) if call in block)
    assert len([line for line in block.splitlines() if line]) <= 10


def commands_of(page: Path) -> list[str]:
    """The commands of a page: lines indented by four, without their comments."""
    prose = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    lines = re.findall(r"(?:(?<=\n\n)|(?<=\n))    (\S.*)", prose)
    words = (
        *("python", "jaxcurv", "make", "pip", "MODEL=", ".", "bash", "git"),
        *("cd", "export", "sbatch", "srun"),
    )
    return [
        re.split(r"\s{2,}#", line)[0].strip()
        for line in lines
        if line.split("=")[0].split()[0] in {word.rstrip("=") for word in words}
    ]


COMMANDS = [
    (name_of(page), line)
    for page in [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "BUILD_NOTES.md"]
    for line in dict.fromkeys(commands_of(page))
]

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
WHEEL = re.escape(f"build/dist/jaxcurv-{PROJECT['version']}-py3-none-any.whl")
TARGETS = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)


class Parsed(SystemExit):
    """A command line was understood."""


@pytest.fixture
def only_parse(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Commands end where their command line is understood; the folders that pages name are there.

    `OWN_RUN` is that of a run of a network of one's own.
    """
    real = experiments.cli.arguments.parse

    def parse(*arguments: object, **named: object) -> None:
        real(*arguments, **named)  # type: ignore[arg-type]
        raise Parsed(0)

    monkeypatch.setattr(experiments.cli.arguments, "parse", parse)
    monkeypatch.setattr(tools.__main__, "parse", parse)
    monkeypatch.chdir(tmp_path)
    for name in ("FOLDER", "DATA", "OWN_RUN"):
        (tmp_path / name).mkdir()
    preset = PRESETS[OWN].experiment
    own = replace(
        preset,
        model=replace(preset.model, factory="package.module:factory"),
        data=replace(preset.data, name=str(tmp_path / "FOLDER")),
    )
    remember(tmp_path / "OWN_RUN" / "settings.json", OWN, asdict(own))


def check(line: str) -> None:
    """Fails unless a line is a command that is understood."""
    for part in line.split("&&"):
        words = shlex.split(part)
        match words:
            case ["python", "-m", "experiments", *rest] | ["jaxcurv", *rest]:
                if len(rest) > 1 and rest[1] == "--out":
                    rest = ["OWN_RUN" if word == "DIR" else word for word in rest]
                assert commands.run(rest) == 0
            case ["python", "-m", "tools", *rest]:
                assert tools.__main__.main(rest) == 0
            case ["python", "-m", "pytest", path] | [
                "python",
                "-m",
                "pytest",
                "-m",
                "long",
                "-s",
                path,
            ]:
                assert (ROOT / path).is_file()
            case ["python", "-m", "http.server", "--directory", "build/docs"]:
                pass
            case ["make", target, *settings]:
                assert target in TARGETS
                assert all("=" in one for one in settings)
            case ["pip", "install", what]:
                extra = re.fullmatch(rf"(?:\.|jaxcurv|{WHEEL})(?:\[([\w-]+)\])?", what)
                assert extra
                assert extra[1] is None or extra[1] in EXTRAS
            case [".", ".venv/bin/activate"]:
                pass
            case [*variables, "bash", script, "job" | "array"]:
                assert all("=" in one for one in variables)
                assert (ROOT / script).is_file()
            case _:
                pytest.fail(f"{part!r} is no command that this test knows")


@pytest.mark.parametrize(("page", "line"), COMMANDS)
@pytest.mark.usefixtures("only_parse")
def test_a_command_is_understood(page: str, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    check(line)
    assert "error:" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "line",
    [
        "python -m experiments run digits --no-such-flag 3",
        "python -m experiments layers --out NOWHERE",
        "python -m experiments run digits --simulate.chips many",
        "python -m tools regenerate --readme README.md",
        "make tea",
        'pip install ".[tea]"',
        "git push",
    ],
)
@pytest.mark.usefixtures("only_parse")
def test_a_wrong_command_is_not(line: str) -> None:
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        check(line)


def test_there_are_commands_on_the_pages_that_need_them() -> None:
    pages = {page for page, _ in COMMANDS}
    wanted = {"own-network", "clusters", "gpu", "studies", "table-one", "runs", "real-chip"}
    assert pages >= {f"docs/guides/{name}.md" for name in wanted} | {"README.md"}
    assert ("README.md", "make demo") in COMMANDS


@pytest.fixture(scope="module")
def helps() -> str:
    """The help of every command, and of the preset of one's own network."""
    return site_pages.command_line()


def test_every_flag_and_setting_on_a_page_is_one(helps: str) -> None:
    others = {"--help", "--version", "--debug", "--directory", "--no-compilation-cache"}
    others |= {"--model", "--data", "--strict"}
    others |= {"--weights", "--limits"}  # tools.crosssim_ranges
    for page in PAGES:
        named = set(re.findall(r"(?<![\w-])--[a-z][\w.-]*\w", page.read_text())) - others
        assert [flag for flag in sorted(named) if flag not in helps] == [], name_of(page)


def test_the_command_line_page_has_every_command(helps: str) -> None:
    named = re.findall(r"^### ([\w-]+)(?: .+)?$", helps, re.MULTILINE)
    assert set(named) == set(commands._COMMANDS)
    assert "Largest number of images of the test fold" in helps


def test_presets_are_listed() -> None:
    text = (ROOT / "docs/guides/runs.md").read_text()
    rows = text.partition("## Presets")[2]
    assert set(re.findall(r"`(\w+)`", rows.partition("\n\nThree")[0])) == set(PRESETS)


def test_readme_is_a_page() -> None:
    assert len(README.read_text().splitlines()) <= 120


RUN = ROOT / "experiments" / "results" / "cifar100_resnet18_small"
COMPENSATED = "adc+wnoise+pcm_gdc"


def test_figures_of_the_results_are_those_of_the_archived_tables() -> None:
    text = (ROOT / "docs/results/index.md").read_text()
    readme = " ".join(README.read_text().split())
    table = pd.read_csv(RUN / "predictors.csv").query("fold == 'test'")
    profiles = ("adc+wnoise+pcm", COMPENSATED)
    for name, row in {
        "curvature": "curvature",
        "margin": "logit margin",
        "least_confidence": "least confidence",
        "flip_probability": "flip probability",
    }.items():
        cells = []
        for profile in profiles:
            query = f"predictor == '{name}' and profile == '{profile}' and denominator == 'correct'"
            (one,) = table.query(query).to_dict("records")
            cells.append(f"{one['auroc']:.3f} [{one['auroc_low']:.3f}, {one['auroc_high']:.3f}]")
        assert f"| {row} | {cells[0]} | {cells[1]} |" in text
        if name != "least_confidence":
            assert cells[0][:5] in readme
    (of_all,) = table.query(
        f"predictor == 'curvature' and profile == '{profiles[0]}' and denominator == 'all'"
    )["auroc"]
    assert f"(AUROC {of_all:.3f})" in readme
    (ends,) = (
        pd.read_csv(RUN / "table_one.csv")
        .query(f"fold == 'test' and profile == '{profiles[0]}'")
        .to_dict("records")
    )
    d1, d10 = ends["d1_of_correct"], ends["d10_of_correct"]
    assert f"{d1:.1f} % fail in the tenth of lowest curvature and {d10:.1f} % (of" in readme


@pytest.mark.parametrize(
    ("name", "scores"),
    [
        ("cifar100_resnet18_fit", ("curvature", "margin", "least_confidence")),
        ("cifar10_resnet18_fit", ("curvature", "margin")),
    ],
)
def test_figures_of_the_regime_are_those_of_the_archived_tables(
    name: str, scores: tuple[str, ...]
) -> None:
    text = (ROOT / "docs/results/index.md").read_text()
    run = ROOT / "experiments/results" / name
    deciles = pd.read_csv(run / "deciles.csv").sort_values("decile")
    for fold in ("train", "test"):
        for profile in ("adc+wnoise+pcm", COMPENSATED):
            rows = deciles.query(f"fold == '{fold}' and profile == '{profile}'")
            cells = " | ".join(f"{100 * rate:.1f}" for rate in rows["rate_of_all"])
            assert f"| {fold}, {profile} | {cells} |" in text
            if fold == "train":  # each step rises
                assert rows["rate_of_all"].is_monotonic_increasing
                ends = [
                    f"{100 * row.rate_of_all:.1f} [{100 * row.rate_of_all_low:.1f}, "
                    f"{100 * row.rate_of_all_high:.1f}]"
                    for row in rows.iloc[[0, -1]].itertuples()
                ]
                for end in ends:
                    assert end.replace(" [", " % [") in text or end in text
    table = pd.read_csv(run / "predictors.csv").query("denominator == 'correct'")
    of_profile = table.query("profile == 'adc+wnoise+pcm'")
    for score in scores:
        (one,) = of_profile.query(f"fold == 'test' and predictor == '{score}'").to_dict("records")
        assert f"{one['auroc']:.3f} [{one['auroc_low']:.3f}, {one['auroc_high']:.3f}]" in text
    model = "logits + gradient norm + curvature"
    (one,) = of_profile.query(f"fold == 'test' and predictor == '{model}'").to_dict("records")
    low, high = one["added_difference_low"], one["added_difference_high"]
    said = f"{one['added_difference']:.4f} [{low:.4f}, {high:.4f}]"
    assert said in " ".join(text.split())


def test_figures_of_the_remedies_are_those_of_the_archived_tables() -> None:
    text = (ROOT / "docs/results/index.md").read_text()
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.count("|") == 8]
    table = {cells[0]: cells[1:] for cells in rows}
    for place, run in enumerate(("cifar100_resnet18_fit", "digits")):
        frame = pd.read_csv(ROOT / f"experiments/results/{run}/remedies/remedies.csv")
        alone = frame[frame["rule"].isin(["none", "all"]) & (frame["time_s"] == 86400)]
        for row in alone.fillna({"second": ""}).itertuples():
            name = f"{row.first}; {row.second}" if row.second else row.first
            name = {"chip": "none"}.get(name, name)
            if name == "digital" or "fitted" in name:
                continue
            accuracy, gain = (
                "{:.1f} [{:.1f}, {:.1f}]".format(*(100 * one for one in values))
                for values in (
                    (row.accuracy, row.accuracy_low, row.accuracy_high),
                    (row.over_free, row.over_free_low, row.over_free_high),
                )
            )
            gain = "" if name == "compensated, recalibrated" else gain
            cells = table[name][3 * place : 3 * place + 3]
            assert cells == [accuracy, gain, f"{row.energy:.3f}"]
