"""`python -m experiments`, and the console script `jaxcurv`."""

import sys


def main() -> None:
    """Runs the command line; where not even the base install is there, says how to install it."""
    try:
        from experiments.cli.commands import run
        from experiments.system.compiled_programs import FLAG, keep_compiled_programs
        from experiments.system.processes import raise_on_sigint, raise_on_sigterm
    except ModuleNotFoundError as error:
        print(
            f"error: jaxcurv is not installed ({error.name} is missing): "
            'pip install ".[experiments]" in its checkout',
            file=sys.stderr,
        )
        sys.exit(2)
    raise_on_sigterm()
    raise_on_sigint()
    arguments = sys.argv[1:]
    keep_compiled_programs(FLAG not in arguments)
    sys.exit(run([argument for argument in arguments if argument != FLAG]))


if __name__ == "__main__":
    main()
