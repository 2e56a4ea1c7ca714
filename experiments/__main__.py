"""`python -m experiments`, and the console script `jaxcurv`."""

import sys


def main() -> None:
    """Runs the command line, or says what must be installed for it."""
    try:
        from experiments.cli.commands import run
        from experiments.system.processes import raise_on_sigint, raise_on_sigterm
    except ModuleNotFoundError as error:
        print(
            f"error: not installed: {error.name}; "
            'pip install ".[experiments]" in the checkout installs it',
            file=sys.stderr,
        )
        sys.exit(2)
    raise_on_sigterm()
    raise_on_sigint()
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
