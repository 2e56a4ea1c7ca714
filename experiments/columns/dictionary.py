"""Every table with its columns, how one is found, and the page of all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import PurePath

from experiments.columns import elsewhere, of_analysis, of_remedies, of_runs, of_studies
from experiments.columns.column import Table

_GROUPS = {
    "Samples, chips and figures of a run": of_runs.TABLES,
    "Analysis of a run": of_analysis.TABLES,
    "Studies of a run": of_studies.TABLES,
    "Remedies": of_remedies.TABLES,
    "Other tables": elsewhere.TABLES,
}

TABLES: tuple[Table, ...] = tuple(one for group in _GROUPS.values() for one in group)

INTRODUCTION = (
    "Files are told by where they lie in the folder of a run, of a study or of archived results; "
    "`*` stands for any name. A table that names a CSV and a Parquet file has the same rows in "
    "both. A column that is named here is absent where the run has nothing to fill it with. The "
    "CSV beside a figure of the report is in `figures/`; what is in `pieces/` is unfinished work."
    " An interval is of the level `--analyse.confidence`, 95 % unless it was set. A sample fails "
    "analog-only where the digital model is right and the chip is wrong."
)


def tables_of(path: str | PurePath) -> list[Table]:
    """The tables that a file may be, by the last parts of its path.

    One file name may be of several: predictors.csv is a run's or of your own tables. A table that
    is told by more parts of the path comes alone.
    """
    path = PurePath(path)
    found = [one for one in TABLES if one.has_file(path)]
    parts = {
        one.name: max(len(PurePath(file).parts) for file in one.files if _is(path, file, one))
        for one in found
    }
    return [one for one in found if parts[one.name] == max(parts.values())]


def _is(path: PurePath, file: str, table: Table) -> bool:
    return Table(table.name, (file,), "", "", {}).has_file(path)


def named(word: str) -> list[Table]:
    """The tables of a name, or those that a file may be; none where there is no such."""
    return [one for one in TABLES if one.name == word] or tables_of(word)


def with_column(name: str) -> list[tuple[Table, str]]:
    """Every table that has a column of this name, with the name that it is described under."""
    keys = ((one, one.key(name)) for one in TABLES)
    return [(one, key) for one, key in keys if key is not None]


def rows_of(table: Table) -> Iterator[tuple[str, str, str, str]]:
    """Name, unit, range and definition of each column."""
    for name, one in table.columns.items():
        yield shown(name), one.unit, one.range, shown(one.definition)


def shown(words: str) -> str:
    """Words with what stands for several names in capitals, as the command line has it."""
    for place in ("chip", "cell", "n", "step", "model", "setting", "estimator"):
        words = words.replace(f"{{{place}}}", place.upper())
    return words


def markdown(tables: Sequence[Table] = TABLES) -> str:
    """A page in Markdown with a section for each of the tables."""
    parts = []
    if len(tables) == len(TABLES):
        parts += ["# Columns of every table", INTRODUCTION]
    for title, group in _GROUPS.items():
        chosen = [one for one in group if one in tables]
        if chosen and len(tables) == len(TABLES):
            parts.append(f"## {title}")
        parts += map(_section, chosen)
    return "\n\n".join(parts) + "\n"


def _section(table: Table) -> str:
    where = ", ".join(f"`{file}`" for file in table.files) or "a file that you name"
    lines = [
        f"### {table.name}",
        "",
        f"In {where}, made by `{table.made_by}`. A row: {table.rows[0].lower()}{table.rows[1:]}",
        "",
        "| column | unit | range | what it holds |",
        "| --- | --- | --- | --- |",
    ]
    for name, unit, limits, definition in rows_of(table):
        cells = (f"`{name}`", unit, limits, definition)
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(lines)
