"""How the documentation site reads docstrings: their doctests become blocks of code."""

from typing import Any

import griffe

from tools.site_pages import fenced


class Doctests(griffe.Extension):
    """An extension of griffe, which reads the code for mkdocstrings."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Fences the doctests of a class, function or attribute."""
        if obj.docstring is not None:
            obj.docstring.value = fenced(obj.docstring.value)
