"""What stands behind a number on the card: each passes one of these filters in the template, and shows its mark."""

import itertools
import re
from collections import defaultdict
from typing import NamedTuple

import jinja2

OPEN, CLOSE = "\ue000", "\ue001"  # around a number, its kind first, until `show_marks`; for private use in Unicode
MARKED = re.compile(rf"{OPEN}(\w+) ([^{OPEN}{CLOSE}]*){CLOSE}")
NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
HEADING = re.compile(r"\|(?:-+\|)+")


class Kind(NamedTuple):
    """Of a number on the card.

    Attributes:
        sign: stands behind it, or in the heading of its column; empty for what is no figure.
        meaning: the card's legend; of what is no figure, what it is.
    """

    sign: str
    meaning: str


KINDS = {
    "files": Kind("ʳ", "follows from this repository's own files, and every `hub-unets verify` computes it again"),
    "data": Kind("ᵈ", "is computed again by `hub-unets verify --data DATA`, on the images"),
    "stated": Kind("ˢ", "is stated, and nothing here can check it"),
    "setting": Kind("", "what the run was told, or what config and processor do"),
    "name": Kind("", "of a data set, a backbone, a class, a repository, a file"),
    "text": Kind("", "the release's own words"),
}
FIGURES = [name for name, kind in KINDS.items() if kind.sign]


def environment():
    """Where the card's template is rendered: a filter for each of KINDS, and four that write figures."""
    made = jinja2.Environment(autoescape=False)  # Markdown, of texts that the checks let pass
    made.filters |= {name: _filter(name) for name in KINDS}
    made.filters |= {"interval": interval, "percent": percent, "digits": digits, "times": times}
    return made


def _filter(kind):
    return lambda value: f"{OPEN}{kind} {str(value).replace(OPEN, '').replace(CLOSE, '')}{CLOSE}"


def digits(value, count=4):
    """A number with so many decimals; a dash where there is none."""
    return "–" if value is None else f"{value:.{count}f}"


def interval(number, count=4):
    """A figure with its 95 % interval, both with so many decimals."""
    value, low, high = (digits(number[name], count) for name in ("value", "low", "high"))
    return f"{value} ({low}–{high})"


def times(count):
    return "once" if count == 1 else f"{count} times"


def percent(share):
    return f"{100 * share:g} %"


def legend():
    """What the marks mean, in one sentence."""
    return "; ".join(f"{KINDS[name].sign} {KINDS[name].meaning}" for name in FIGURES)


def marked_numbers(text):
    """[(kind, text)] of all that a template's filters passed, in order."""
    return MARKED.findall(text)


def unmarked(text):
    """What is left of a rendered template without all that its filters passed."""
    return MARKED.sub("", text)


def show_marks(text):
    """A rendered template as its reader sees it: a sign behind each figure, or in the heading of a table's column."""
    lines = text.split("\n")
    for is_table, group in itertools.groupby(enumerate(lines), lambda line: line[1].startswith("|")):
        numbers = [number for number, _ in group]
        if is_table:
            lines[numbers[0] : numbers[-1] + 1] = _head_columns([lines[number] for number in numbers])
    return MARKED.sub(lambda match: _with_sign(match[2], match[1]), "\n".join(lines))


def _with_sign(text, kind):
    return text + KINDS[kind].sign if NUMBER.search(text) else text


def _head_columns(lines):
    """A table's lines; a column whose figures are of one kind has its sign in the heading, and none in its cells."""
    if len(lines) < 3 or not HEADING.fullmatch(lines[1]):
        return lines
    heading, rows, kinds = lines[0].split("|"), [line.split("|") for line in lines[2:]], defaultdict(set)
    for row in rows:
        for column, cell in enumerate(row):
            kinds[column] |= {kind for kind, text in marked_numbers(cell) if KINDS[kind].sign and NUMBER.search(text)}
    alone = {column: min(there) for column, there in kinds.items() if len(there) == 1 and column < len(heading)}
    for column, kind in alone.items():
        heading[column] = f"{heading[column].rstrip()} {KINDS[kind].sign} "
        for row in rows:
            row[column : column + 1] = [MARKED.sub(r"\2", cell) for cell in row[column : column + 1]]
    return ["|".join(heading), lines[1], *("|".join(row) for row in rows)]
