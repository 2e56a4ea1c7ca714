"""What the fields of a dataclass mean: the strings below them in its source, or the section
`Attributes:` of its docstring.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from itertools import pairwise


def field_docs(kind: type) -> dict[str, str]:
    """The docstring of each field that has one, as one line; those of base classes too."""
    docs: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        docs |= _attributes(base.__dict__.get("__doc__") or "")
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


def _attributes(docstring: str) -> dict[str, str]:
    """The entries of the section `Attributes:`, each as one line that begins with a capital.

    What is followed by "(`WORD` on the command line)" gives way to that word.
    """
    _, _, section = inspect.cleandoc(docstring).partition("\nAttributes:\n")
    found: dict[str, str] = {}
    for entry in re.findall(r"^  \S.*(?:\n {3,}.*)*", section.partition("\n\n")[0], re.MULTILINE):
        name, _, text = " ".join(entry.split()).partition(": ")
        text = re.sub(r"\S+ \((`\w+`) on the command line\)", r"\1", text)
        found[name] = text[:1].upper() + text[1:]
    return found


def first_paragraph(kind: type) -> str:
    """The first paragraph of a class's docstring, as one line."""
    paragraph, _, _ = inspect.cleandoc(kind.__doc__ or "").partition("\n\n")
    return " ".join(paragraph.split())
