"""The help of every command, as a reader with fresh eyes sees it."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from experiments.cli import commands
from experiments.cli.descriptions import DOES
from experiments.runs.remembered import as_leaves
from experiments.runs.stage_names import STAGE_NAMES
from experiments.settings.presets import PRESETS, flag_name

STUDIES = (
    *("rank-correlation", "rescore", "validate"),
    *("layers", "drift", "compare-noise", "atlas", "student", "remedies", "finetune"),
)

HELPED = [
    "",
    *(f"{command} digits" for command in ("run", *STAGE_NAMES, *STUDIES)),
    *("run", "score --data x", "merge", "analyse --out x", "table-one", "figure-one", "gallery"),
    *("fit-paper", "reproduce", "presets", "benchmark", "compare", "columns"),
    *("benchmark curvature", "benchmark analog", "benchmark load"),
    "run imagenet_resnet50",
]

FORBIDDEN = (
    r"<class",
    r"\b[Ss]ubcommand",
    r"\{None\}",
    r"\bNone\b",
    r"\bTrue\b|\bFalse\b",
    r"NoneType",
    r"typing\.",
    r"\[\[",
    r"\b(seal|sealed)\b|\.converter",
    r"(: |\. |^ *)Of ",
)
"""What is Python's or was ours, and no reader's."""


def helped(line: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert commands.run([*line.split(), "--help"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out


def texts(said: str) -> Iterator[tuple[str, str]]:
    """Each flag or argument with its text in one line."""
    name, lines = "", list[str]()
    for line in [*said.splitlines(), "end"]:
        if line.startswith("      "):
            lines.append(line.strip())
        elif line:
            if lines:
                yield name, " ".join(lines)
            name, lines = line.strip(), []


@pytest.mark.parametrize("columns", [80, 100])
@pytest.mark.parametrize("line", HELPED)
def test_help_is_plain(
    line: str, columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    said = helped(line, capsys)
    for pattern in FORBIDDEN:
        assert not re.search(pattern, said, re.MULTILINE), (pattern, said)
    assert [one for one in said.splitlines() if len(one) > columns] == []


@pytest.mark.parametrize(
    "line", [one for one in HELPED if one not in ("", "run", "presets", "benchmark")]
)
def test_every_flag_has_a_sentence_and_its_default(
    line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    found = dict(texts(helped(line, capsys)))
    assert len(found) >= 3
    for name, text in found.items():
        assert re.match(r"[A-Z]", text), (name, text)
        assert re.search(r"[.)]$", text), (name, text)
        if name.startswith("--") and not name.endswith("conductances [NUMBER,... ...]"):
            assert re.search(r"\((default: .+|required)\)$", text), (name, text)
        if "none" in name.split() or name.endswith("|none"):
            assert '"none"' in text, (name, text)  # says what it means


@pytest.mark.parametrize("command", ["run", *STAGE_NAMES, *STUDIES])
def test_help_says_first_what_the_command_does(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    _, description, *_ = helped(f"{command} digits", capsys).split("\n\n")
    assert " ".join(description.split()).startswith(f"{command}: {DOES[command]}")
    if command not in ("score", "analyse"):
        assert DOES[command] in " ".join(helped(command, capsys).split())
    else:
        assert f"{command} PRESET --help" in " ".join(
            helped(f"{command} --model x", capsys).split()
        )


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (
            "flips",
            "It reads the flags --data.*, --folds, --limit, --limit-train, --simulate.profiles, ",
        ),
        ("score", "--score.*; the others are those of other stages."),
        ("drift", "Its own flags are --drift.*; the others are the run's."),
    ],
)
def test_help_says_which_flags_a_command_reads(
    command: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert words in " ".join(helped(f"{command} digits", capsys).split())


def test_every_setting_is_a_flag(capsys: pytest.CaptureFixture[str]) -> None:
    names = {
        name for line, _ in texts(helped("run digits", capsys)) for name in re.split(r",? ", line)
    }
    assert names >= set(map(flag_name, as_leaves(PRESETS["digits"].experiment)))


def test_defaults_are_the_preset_s_or_the_folder_s(
    run_copy,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)  # where no earlier run of the preset lies
    said = helped("run digits", capsys)
    assert "Defaults are those of the preset digits." in said
    assert dict(texts(said))["--model.width N"].endswith("(default: 16)")
    said = helped(f"run digits --out {run_copy}", capsys)
    assert f"Defaults are what {run_copy} remembers" in " ".join(said.split())
    assert dict(texts(said))["--model.width N"].endswith("(default: 4)")
