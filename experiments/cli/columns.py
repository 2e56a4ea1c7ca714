"""The command `columns`: what the columns of a table hold."""

from __future__ import annotations

import difflib
import textwrap
from dataclasses import dataclass, field

from rich import box
from rich.console import Console
from rich.table import Table as Printed

from experiments.columns import dictionary
from experiments.columns.column import TEXT, Table
from experiments.settings.values import positional

_WIDTH = 30
"""Characters of a line with unit and range."""


@dataclass(frozen=True)
class Columns:
    """What the columns of a table hold: unit, range and definition."""

    names: tuple[str, ...] = field(default=(), metadata=positional("NAME"))
    """Names of tables, of their files, such as figures/figure_one.csv, or of columns; without any,
    all tables are listed."""
    markdown: bool = False
    """Print Markdown; without a name the page of all tables."""
    debug: bool = False
    """Show the traceback of an error."""


def columns(options: Columns) -> None:
    """Prints the tables, or the columns, of the names.

    Raises:
      ValueError: there is neither a table nor a column of a name.
    """
    found = [_found(name) for name in options.names]
    if options.markdown:
        chosen = [one for tables, _ in found for one in tables]
        print(dictionary.markdown(chosen if options.names else dictionary.TABLES), end="")
        return
    console = Console(highlight=False)
    if not options.names:
        console.print(_list())
        print("One of them: columns NAME, with the name of a table, a file or a column.")
    for name, (tables, is_column) in zip(options.names, found, strict=True):
        if is_column:
            console.print(_occurrences(name))
        else:
            for one in tables:
                console.print(_columns(one))


def _found(name: str) -> tuple[list[Table], bool]:
    """The tables of a name, or those that have a column of it; and whether it is a column's."""
    if tables := dictionary.named(name):
        return tables, False
    if occurrences := dictionary.with_column(name):
        return [table for table, _ in occurrences], True
    names = {key for one in dictionary.TABLES for key in (one.name, *one.columns)}
    near = difflib.get_close_matches(name, names, n=3)
    meant = f" (near: {', '.join(map(dictionary.shown, near))})" if near else ""
    raise ValueError(
        f"no table, file or column is called {name!r}{meant}; python -m experiments columns lists "
        "the tables"
    )


def _new(title: str, *headers: str, caption: str | None = None) -> Printed:
    return Printed(
        *headers,
        title=title,
        caption=caption,
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        title_justify="left",
        caption_justify="left",
    )


def _list() -> Printed:
    printed = _new("Tables", "table", "a row", "files")
    for one in dictionary.TABLES:
        printed.add_row(one.name, one.rows, ", ".join(one.files) or "a file that you name")
    return printed


def _columns(table: Table) -> Printed:
    where = ", ".join(table.files) or "a file that you name"
    printed = _new(
        f"{table.name} ({where})",
        *("column, its unit and range", "what it holds"),
        caption=f"A row: {table.rows[0].lower()}{table.rows[1:]} Made by {table.made_by}.",
    )
    printed.columns[0].no_wrap = True
    for name, unit, limits, definition in dictionary.rows_of(table):
        printed.add_row(_with_unit(name, unit, limits), definition)
    return printed


def _occurrences(name: str) -> Printed:
    printed = _new(f"Column {name}", "in table, its unit and range", "what it holds")
    for table, key in dictionary.with_column(name):
        one = table.columns[key]
        where = _with_unit(table.name, one.unit, one.range)
        printed.add_row(where, dictionary.shown(one.definition))
    return printed


def _with_unit(name: str, unit: str, limits: str) -> str:
    """A name, and below it unit and range."""
    told = (": " if unit == TEXT else ", ").join(filter(None, (unit, limits)))
    return "\n  ".join(filter(None, (name, *textwrap.wrap(told, _WIDTH))))
