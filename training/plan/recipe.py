"""A recipe in the making: fields in groups, each with its reason, to be printed in lines or written as YAML."""

from typing import NamedTuple

import yaml

from hub_unets.training.settings.texts import value_of

NOT_IN_A_PLAN = ("output_dir", "plan_only", "check_data", "disable_tqdm", "dataloader_num_workers")


class Field(NamedTuple):
    """One line of a recipe: its name, dotted where nested, its value and why."""

    name: str
    value: object
    reason: str


class Recipe:
    """Groups of fields; what the command line gives stands in place of what is set here.

    Args:
        given: names, dotted where nested, to values; None takes the field back to its default.
    """

    def __init__(self, given):
        self.given, self.groups = given, {}

    def decide(self, title, text):
        """Start a group, whose line reads "title text"."""
        self.groups[title] = (text, [])

    def set(self, name, value, reason):
        """Add a field to the last group, and return the value that holds."""
        if name in self.given:
            reason = "given" if self.given[name] == value else f"given; the plan: {_flow(value)}"
            value = self.given[name]
        self.last_fields.append(Field(name, value, reason))
        return value

    @property
    def last_fields(self):
        """The fields of the last group."""
        return list(self.groups.values())[-1][1]

    @property
    def fields(self):
        """All fields in order, those that the command line alone gives last."""
        own = [field for _, fields in self.groups.values() for field in fields]
        names = {field.name for field in own}
        return own + [Field(name, value, "given") for name, value in self.given.items() if name not in names]

    def lines(self):
        """One line a decision, for a person."""
        return [f"{title} {text}" for title, (text, _) in self.groups.items()]

    def as_yaml(self, head=()):
        """The recipe, as `hub-unets train` takes it, with each reason as a comment.

        Args:
            head: lines of the comment at its top.
        """
        groups = [(f"{title} {text}", fields) for title, (text, fields) in self.groups.items()]
        own = {field.name for _, fields in groups for field in fields}
        groups.append(("given besides", [field for field in self.fields if field.name not in own]))
        lines = [f"# {line}" for line in head]
        for heading, fields in groups:
            kept = [field for field in fields if field.value is not None]
            if heading != "given besides" or kept:
                lines += ["", f"# {heading}"]
            lines += [line for field in kept if "." not in field.name for line in _lines_of(field)]
        for section in ("model", "loss"):
            nested = [field for field in self.fields if field.name.startswith(f"{section}.")]
            nested = [field for field in nested if field.value is not None]
            if nested:
                lines += ["", f"{section}:"]
                lines += [f"  {_line(field.name.partition('.')[2], field.value, field.reason)}" for field in nested]
        return "\n".join(lines) + "\n"


def given_fields(overrides):
    """The fields of a command line as a recipe would hold them: {name: value}.

    Args:
        overrides: {"--name": texts}, as `settings.texts.pairs` returns.
    """
    given = {}
    for option, texts in overrides.items():
        name = option.removeprefix("--")
        values = [value_of(text) for text in texts]
        value = True if not values else values[0] if len(values) == 1 else values
        given[name] = yaml.safe_load(value) if name == "augmentation" and isinstance(value, str) else value
    return {name: value for name, value in given.items() if name not in NOT_IN_A_PLAN}


def _lines_of(field):
    if isinstance(field.value, list) and field.value and all(isinstance(item, dict) for item in field.value):
        return [f"{field.name}:  # {field.reason}", *(f"  - {_flow(item)}" for item in field.value)]
    return [_line(field.name, field.value, field.reason)]


def _line(name, value, reason):
    return f"{name}: {_flow(value)}" + (f"  # {reason}" if reason else "")


def _flow(value):
    """A value as YAML in one line."""
    text = yaml.safe_dump(value, default_flow_style=True, width=float("inf"), allow_unicode=True, sort_keys=False)
    return text.removesuffix("...\n").strip()
