"""Recipe files: YAML of limited size to flat names and values, including those of the recipe it is based on."""

import contextlib
import difflib
import math
from pathlib import Path

import yaml

from hub_unets.training.errors import UserError

RECIPES = Path(__file__).parents[1] / "recipes"
NESTED = ("model", "loss", "grid", "space")
WHOLE = ("loss", "grid", "space")  # replace the base recipe's as a whole; `model` is merged field by field
LONGEST_RECIPE = 100_000  # bytes, and values


def find_recipe(name, folder="."):
    """The path of a recipe given by path, from `folder` or here, or by name among those that come with the project."""
    for path in (Path(folder, name), Path(name), RECIPES / name, RECIPES / f"{name}.yaml"):
        with contextlib.suppress(OSError, ValueError):  # a name too long, or of characters that no file has
            if path.is_file():
                return path
    known = sorted(path.stem for path in RECIPES.glob("*.yaml"))
    best = difflib.get_close_matches(Path(name).stem, known, n=1, cutoff=0)
    raise UserError(f"no recipe {name!r}; did you mean {best[0]}? There are {', '.join(known)}, or give a .yaml file.")


def read_recipe(path, ancestors=()):
    """A recipe as flat names, `model.backbone`, to values, including those of the recipe it is based on.

    Raises:
        UserError: not YAML, not a mapping of names to values, or recipes that are based on one another.
    """
    path = Path(path).resolve()
    if path in ancestors:
        raise UserError(f"{path} stands on itself: recipe must name another one.")
    own_fields = _flat(path)
    base = own_fields.pop("recipe", None)
    if not isinstance(base, str | None):
        raise UserError(f"{path}: recipe must be the name or the path of another one, got {base!r}.")
    inherited = {} if base is None else read_recipe(find_recipe(base, path.parent), (*ancestors, path))
    replaced = tuple(f"{section}." for section in WHOLE if any(name.startswith(f"{section}.") for name in own_fields))
    return {name: value for name, value in inherited.items() if not name.startswith(replaced)} | own_fields


def _flat(path):
    """The recipe's own names, those of `model:` and its like dotted."""
    content = _yaml(path)
    if not isinstance(content, dict):
        raise UserError(f"{path} must map names to values, as in `learning_rate: 1e-3`.")
    flat = {}
    for name, value in content.items():
        if not isinstance(name, str):
            raise UserError(f"{path}: a name must be text, got {name!r}.")
        if name in NESTED:
            if not isinstance(value, dict):
                raise UserError(f"{path}: {name} must map names to values, got {repr(value)[:80]}.")
            flat |= {f"{name}.{key}": item for key, item in value.items()}
        else:
            flat[name] = value
    return flat


def _yaml(path):
    """What a recipe's file holds, {} where it is empty.

    Raises:
        UserError: not YAML, or more than a recipe's worth of it, aliases written out.
    """
    try:
        if path.stat().st_size > LONGEST_RECIPE:
            raise UserError(f"{path} has {path.stat().st_size} bytes, a recipe at most {LONGEST_RECIPE}.")
        content = yaml.safe_load(path.read_text(encoding="utf-8-sig")) or {}
        if _values(content, {}) > LONGEST_RECIPE:
            raise UserError(f"{path} stands for more than {LONGEST_RECIPE} values: write it without aliases (*name).")
    except UserError:
        raise
    except RecursionError as error:
        raise UserError(f"{path} is nested too deeply, or within itself.") from error
    except Exception as error:  # of YAML; ValueError of its dates and numbers, and more
        raise UserError(f"{path} is not YAML: {error}") from error
    return content


def _values(value, counts):
    """How many values there are below one, aliases written out. Raises RecursionError for one that holds itself."""
    if not isinstance(value, (list, dict)):
        return 1
    if id(value) not in counts:
        counts[id(value)] = math.nan  # until its own are counted
        items = value if isinstance(value, list) else value.values()
        counts[id(value)] = 1 + sum(_values(item, counts) for item in items)
    if math.isnan(counts[id(value)]):
        raise RecursionError
    return counts[id(value)]


def run_fields(recipe):
    """A recipe without what only a sweep reads."""
    return {
        name: value
        for name, value in recipe.items()
        if name not in ("trials", "rank_within") and not name.startswith(("grid.", "space."))
    }
