"""How a program ends early: one line for the reader and an exit status for the shell."""

import shlex
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

TRAINER = (sys.executable, "-m", "trainer")
"""The command that runs this package again."""


class UsageError(Exception):
    """Input that cannot be used. The message is one line with the remedy."""


class DivergenceError(Exception):
    """The loss is not finite. The last checkpoint is still valid."""


class StoppedError(Exception):
    """Training ended before its last step and saved a checkpoint."""

    def __init__(self, message: str, exit_status: int) -> None:
        super().__init__(message)
        self.exit_status = exit_status


def run_command(main: Callable[[], object]) -> NoReturn:
    """Runs a `main` and exits with a status that shows how it ended."""
    try:
        main()
    except StoppedError as stop:
        print(f"{stop}\nresume with: {resume_command(sys.argv[1:])}")
        sys.exit(stop.exit_status)
    except (UsageError, DivergenceError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, UsageError) else 1)
    except KeyboardInterrupt:
        print("\ninterrupted; nothing was saved since the last checkpoint", file=sys.stderr)
        sys.exit(130)
    sys.exit(0)


def resume_command(arguments: Sequence[str]) -> str:
    """Returns the shell command that resumes the run that these arguments started."""
    kept, rest = [], iter(arguments)
    for argument in rest:
        if argument == "--stop-at":
            next(rest, None)
        elif argument not in ("--overwrite", "--resume") and not argument.startswith("--stop-at="):
            kept.append(argument)
    return shlex.join([*TRAINER, *kept, "--resume"])
