"""What stands on a terminal in the end, of all that was written to it."""

import io


class Terminal(io.StringIO):
    """Takes itself for a terminal."""

    def isatty(self) -> bool:
        return True


def lines_of(written: str) -> list[str]:
    """The lines that stand there, each drawn over where "\\r" came back to its beginning."""
    found = []
    for line in written.split("\n"):
        shown = ""
        for text in line.split("\r"):
            shown = text + shown[len(text) :]
        found.append(shown.rstrip())
    return [line for line in found if line]
