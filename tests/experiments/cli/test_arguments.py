"""A command line from a dataclass: values, refusals, one of several dataclasses."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from experiments.cli.arguments import parse
from experiments.settings.values import INLINE, positional


@dataclass(frozen=True)
class Line:
    """A line."""

    slope: float = 1.0
    """Slope."""


@dataclass(frozen=True)
class Polynomial:
    """A polynomial."""

    factors: tuple[float, ...]
    """Factors."""
    points: tuple[tuple[float, ...], ...] = ()
    """Points."""


@dataclass(frozen=True)
class Inner:
    """What is in it."""

    count: int = 3
    """How many."""
    on: bool = True
    """Whether."""
    curve: Line | Polynomial = field(default_factory=Line)
    """Curve."""

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"count must be at least 1; got {self.count}")


@dataclass(frozen=True)
class Flat:
    """Without a prefix."""

    limit: int | None = None
    """Most."""


@dataclass(frozen=True)
class Settings:
    """All kinds."""

    run: Path = field(metadata=positional("RUN"))
    """Folder."""
    flat: Flat = field(metadata=INLINE)
    in_ner: Inner = field(default_factory=Inner)
    name: str | None = None
    """Name."""
    size: int | Literal["auto"] = "auto"
    """Size."""
    kinds: tuple[Literal["a", "b", "a_b", "b-a"], ...] = ("a",)
    """Kinds."""
    mean: tuple[float, ...] | None = None
    """Mean."""


def given(*words: str) -> Settings:
    return parse(Settings, "prog", words, default=Settings(Path("there"), Flat(7)))


def test_what_is_not_given_is_the_default_s() -> None:
    assert given() == Settings(Path("there"), Flat(7))


def test_values_of_every_kind() -> None:
    found = given(
        *("runs/x", "--limit", "none", "--in_ner.count=5", "--in-ner.no-on", "--name", "x y"),
        *("--size", "8", "--kinds", "b", "a", "--mean", "0.5", "-1"),
    )
    assert found == Settings(
        Path("runs/x"), Flat(None), Inner(5, False), "x y", 8, ("b", "a"), (0.5, -1.0)
    )
    assert given("--size", "auto", "--kinds", "--mean", "None").kinds == ()


def test_choices_are_taken_with_dashes_or_underscores() -> None:
    """As the names of flags are."""
    words = ("--kinds", "a-b", "a_b", "b_a", "b-a")
    assert given("--in_ner.count", "2", *words).kinds == ("a_b", "a_b", "b-a", "b-a")


def test_one_of_several_dataclasses() -> None:
    flag = "--in-ner.curve"
    assert given(f"{flag}.slope", "2").in_ner.curve == Line(2.0)
    chosen = given(
        flag, "polynomial", f"{flag}.factors", "1", "2", f"{flag}.points", "0,1", "2,3.5"
    )
    assert chosen.in_ner.curve == Polynomial((1.0, 2.0), ((0.0, 1.0), (2.0, 3.5)))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--limit ten", "--limit cannot be 'ten': give a whole number such as 10, or none (every"),
        ("--size x", "--size cannot be 'x': give a whole number such as 10, or auto (every flag"),
        ("--kinds a c", "--kinds cannot be 'c': give one of a, b, a_b, b-a (every flag"),
        ("--mean none 1", "--mean cannot be 'none': give a number such as 0.5 (every"),
        ("--limit", "--limit needs a value (every flag: prog --help)"),
        ("--limit 1 2", "unexpected '2'"),
        ("--lim 1", "there is no flag --lim; did you mean --limit? (every flag: prog --help)"),
        ("--count 1", "there is no flag --count; did you mean --in-ner.count?"),
        ("--in-ner.count 0", "--in-ner.count must be at least 1; got 0"),
        ("--in-ner.curve polynomial", "polynomial needs --in-ner.curve.factors"),
        (
            "--in-ner.curve.factors 1",
            "--in-ner.curve.factors is not for line: give --in-ner.curve polynomial with it",
        ),
    ],
)
def test_a_refusal_says_what_to_type(words: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as refused:
        given("runs", *words.split())
    assert "\n" not in str(refused.value)


def test_what_must_be_given() -> None:
    with pytest.raises(ValueError, match="RUN must be given"):
        parse(Settings, "prog", [])
