"""Settings as a record may print them: without a machine's folders and a database's password."""

import re
import shlex
from pathlib import Path, PureWindowsPath

from hub_unets.training.settings.texts import pairs

PATHS = (
    "data",
    "extra_data",
    "negatives",
    "unlabelled",
    "teacher",
    "start_from",
    "backbone_weights",
    "output_dir",
    "recipe",
)
SECRETS = ("storage",)
PATH = re.compile(  # ~/a/b, file:///a/b, /a/b and C:\\a\\b, not the path of a URL or the id of a repository
    r"(?<![\w:/.~\\-])(?:file://)?(?:~[\w.-]*/|/|[A-Za-z]:[\\/])(?:[^\s/\\,;:'\"{}\[\]()]+[\\/])*([^\s/\\,;:'\"{}\[\]()]*)"
)
PASSWORD = re.compile(r"(://[^\s:/@]*):[^\s/]*@|([?&]password=)[^&\s]*", re.IGNORECASE)


def publishable(settings):
    """Settings, names to texts, with each local path cut to its last name."""
    return {name: _value(name, text) for name, text in settings.items()}


def without_folders(text):
    """A text with each absolute path in it cut to its last name."""
    return PATH.sub(lambda match: match[1], text)


def without_password(text):
    """A text with the password of each URL in it as ***."""
    return PASSWORD.sub(lambda match: f"{match[1]}:***@" if match[1] else f"{match[2]}***", text)


def command_of(script, argv):
    """The command line that gives these settings to training/SCRIPT.py, as a record may print it."""
    recipe, options = (argv[:1], argv[1:]) if argv and not argv[0].startswith("-") else ([], argv)
    texts = [_value("recipe", text) for text in recipe]
    for name, values in pairs(options).items():
        texts += [name, *(_value(name.removeprefix("--"), value) for value in values)]
    return shlex.join(["accelerate", "launch", f"training/{script}.py", *texts])


def _value(name, text):
    if name in SECRETS:
        return without_folders(without_password(text))
    path, query, tail = text.partition("?")
    if name in PATHS and _is_elsewhere(path):
        return re.split(r"[/\\]", path.rstrip("/\\"))[-1] + query + tail
    return without_folders(text)


def _is_elsewhere(path):
    """Whether a path leads out of the folder that the command was run in."""
    is_absolute = Path(path).is_absolute() or PureWindowsPath(path).is_absolute()
    return is_absolute or path.startswith(("~", "file://")) or ".." in re.split(r"[/\\]", path)
