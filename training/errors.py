"""Errors that are the user's to mend, and how a command ends with one."""

import contextlib
import os
import signal
import sys


class UserError(ValueError):
    """What the user gave can't be used; the text says what is wrong, with which file or field, and what to do."""


class Terminated(BaseException):
    """SIGTERM was sent: by a scheduler that takes the machine back, or by a launcher whose other process failed."""


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

    Ctrl-C ends with one line and exit code 130, SIGTERM with 143. Processes that a launcher started beside one another
    were given the same input: the first of a machine speaks, the others leave without a word, and with 0, as the
    launcher ends the first at once where another one fails. What the system refuses to one process alone, that
    process says itself.
    """
    number = int(os.environ.get("LOCAL_RANK", 0))
    signal.signal(signal.SIGTERM, _terminate)
    try:
        sys.exit(main(*arguments))
    except (KeyboardInterrupt, Terminated) as stop:
        is_sent = isinstance(stop, Terminated)
        _leave(f"stopped{' by SIGTERM' if is_sent else ''}: repeat the command to go on.", 143 if is_sent else 130)
    except UserError as error:
        sys.exit(f"error: {_one_line(error)}" if number == 0 else 0)
    except OSError as error:
        sys.exit(f"error: {f'process {number}: ' if number else ''}{_one_line(error)}")


def _terminate(number, frame):
    raise Terminated


def _leave(text, code):
    """End at once: what threads, workers and destructors would still print helps nobody."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    if int(os.environ.get("LOCAL_RANK", 0)) == 0:
        print(f"\n{text}", file=sys.stderr)
    sys.exit(code)


def _one_line(error):
    return " ".join(str(error).split())
