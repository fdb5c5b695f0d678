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
    """Run a command's `main` and exit with its code; an error of the user or the system is printed as one line.

    Ctrl-C ends with one line and exit code 130, SIGTERM with 143. Processes of one launcher have the same input: only
    the first of a machine prints a user's error. The others exit silently and with 0, because a launcher kills the
    first where another fails. Each process prints its own system errors.
    """
    number = int(os.environ.get("LOCAL_RANK", 0))
    signal.signal(signal.SIGTERM, _terminate)
    try:
        sys.exit(main(*arguments))
    except (KeyboardInterrupt, Terminated) as stop:
        signalled, code = (" by SIGTERM", 143) if isinstance(stop, Terminated) else ("", 130)
        _leave(f"stopped{signalled}: repeat the command to go on.", code)
    except UserError as error:
        sys.exit(f"error: {_one_line(error)}" if number == 0 else 0)
    except OSError as error:
        sys.exit(f"error: {f'process {number}: ' if number else ''}{_one_line(error)}")


def first_line(error):
    """The first line of an error's text, cut to 200 characters, or the name of its type."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _terminate(number, frame):
    raise Terminated


def _leave(text, code):
    """Exit at once, without the messages of threads, workers and destructors."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    if int(os.environ.get("LOCAL_RANK", 0)) == 0:
        print(f"\n{text}", file=sys.stderr)
    sys.exit(code)


def _one_line(error):
    return " ".join(str(error).split())
