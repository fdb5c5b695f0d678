"""A check and its outcome."""

from dataclasses import dataclass

from hub_unets.hub_repos.checks.isolated import most_memory
from hub_unets.training.errors import UserError

LONGEST = 1000  # letters of a reason


@dataclass(frozen=True)
class Check:
    """One line of a verification; `reason` is why it failed, or what was found. A `note` judges nothing."""

    name: str
    passed: bool
    reason: str = ""
    note: bool = False

    def __str__(self):
        reason = printable(self.reason)
        outcome = "note" if self.note else "ok  " if self.passed else "FAIL"
        return f"{outcome} {self.name}{': ' if reason else ''}{reason}"


def printable(text):
    """A text with ? for what is no printable character: no escape moves the cursor."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def checked(name, check, *arguments):
    """Run a function that raises on a fault and may return a note; returns its Check.

    An untrusted repository can break a check in any way, so every exception is a failure.
    """
    try:
        return Check(name, True, check(*arguments) or "")
    except Exception as error:
        return Check(name, False, _reason(error)[:LONGEST])


def checks_of(name, check, *arguments):
    """The Checks that a function returns; where it raises, one failed Check of this name."""
    try:
        return check(*arguments)
    except Exception as error:
        return [Check(name, False, _reason(error)[:LONGEST])]


def _reason(error):
    text = " ".join(str(error).split())
    if isinstance(error, MemoryError) or "can't allocate memory" in text:
        return f"it takes more memory than a repository may ({most_memory() / 2**30:.0f} GB)"
    return text if isinstance(error, (UserError, FileNotFoundError)) else f"{type(error).__name__}: {text}"
