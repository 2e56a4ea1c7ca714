"""How the documentation site reads docstrings: doctests become code, and each name has an entry."""

from typing import Any

import griffe

from tools.site_pages import fenced, one_each


class Doctests(griffe.Extension):
    """An extension of griffe, which reads the code for mkdocstrings."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Fences the doctests of a class, function or attribute, and divides shared entries."""
        if obj.docstring is not None:
            obj.docstring.value = one_each(fenced(obj.docstring.value))
