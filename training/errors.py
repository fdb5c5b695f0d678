"""Errors that are the user's to mend, and how a command ends with one."""

import contextlib
import os
import sys


class UserError(ValueError):
    """What the user gave can't be used; the text says what is wrong, with which file or field, and what to do."""


@contextlib.contextmanager
def about_input():
    """Raise as UserError a ValueError of a library or of published code that judges what the user gave."""
    try:
        yield
    except UserError:
        raise
    except ValueError as error:
        raise UserError(str(error)) from error


def run_command(main, *arguments):
    """Run a command's `main` and exit with its code: of a user's error or the system's one line, else the traceback.

    Processes that a launcher started beside one another meet the same error: the first of a machine says it, the
    others leave without a word, and with 0, as the launcher ends the first at once where another one fails.
    """
    try:
        sys.exit(main(*arguments))
    except KeyboardInterrupt:
        sys.exit("stopped: repeat the command to go on.")
    except (UserError, OSError) as error:
        is_first = int(os.environ.get("LOCAL_RANK", 0)) == 0
        sys.exit(f"error: {' '.join(str(error).split())}" if is_first else 0)
