"""What the fields of a dataclass mean: the strings that stand below them in its source."""

from __future__ import annotations

import ast
import inspect
import textwrap
from itertools import pairwise


def field_docs(kind: type) -> dict[str, str]:
    """The docstring of each field that has one, as one line; those of base classes too."""
    docs: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        try:
            source = textwrap.dedent(inspect.getsource(base))
        except (OSError, TypeError):  # a class that was made, not written
            continue
        (definition,) = ast.parse(source).body
        assert isinstance(definition, ast.ClassDef)
        for statement, after in pairwise(definition.body):
            if (
                isinstance(statement, ast.AnnAssign)
                and isinstance(statement.target, ast.Name)
                and isinstance(after, ast.Expr)
                and isinstance(after.value, ast.Constant)
            ):
                docs[statement.target.id] = " ".join(str(after.value.value).split())
    return docs


def first_paragraph(kind: type) -> str:
    """The first paragraph of a class's docstring, as one line."""
    paragraph, _, _ = inspect.cleandoc(kind.__doc__ or "").partition("\n\n")
    return " ".join(paragraph.split())
