"""Checks of a built repository."""

from dataclasses import dataclass


@dataclass
class Check:
    """What was checked and how it went."""

    name: str
    passed: bool
    reason: str = ""


def verify_folder(folder, run=True):
    """The checks of a built repository's folder."""
    return []
