"""Changes to a built repository, and how whoever makes them signs it again."""

import hashlib
import json
import os
import re
from pathlib import Path

from safetensors.torch import load_file, save_file

from hub_unets.hub_repos.checks.verification import verify_folder
from hub_unets.hub_repos.repository.card import write_card
from hub_unets.training.records.locks import make_lock

PROJECT = Path(__file__).parents[2]
NAMES = "card names this repository"


def failures(folder, **options):
    return {check.name: check.reason for check in verify_folder(folder, **options) if not check.passed}


def sign(folder):
    """Make the manifest fit again, as whoever changes a repository can."""
    manifest = json.loads((folder / "manifest.json").read_text())
    unlisted = ("manifest.json", ".gitattributes")
    contents = {path.name: path.read_bytes() for path in folder.iterdir() if path.name not in unlisted}
    manifest["files"] = {
        name: {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
        for name, content in contents.items()
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))


def edit(name, pattern, replacement):
    """A change of one text of a file."""

    def change(folder):
        text, count = re.subn(pattern, replacement, (folder / name).read_text(), count=1, flags=re.MULTILINE)
        assert count == 1
        (folder / name).write_text(text)

    return change


def edit_json(name, render=False, **changes):
    """A change of a JSON file's values; keys are paths joined by __. `render` writes the card anew."""

    def change(folder):
        content = json.loads((folder / name).read_text())
        for dotted, value in changes.items():
            *parents, field = dotted.split("__")
            holder = content
            for parent in parents:
                holder = holder[parent]
            holder[field] = value
        (folder / name).write_text(json.dumps(content))
        if render:
            write_card(folder, json.loads((folder / "results.json").read_text()))

    return change


def lock_anew(folder):
    """The lock of the settings as they are now, as whoever changes them can make it."""
    results = json.loads((folder / "results.json").read_text())
    run, data = results["run"], results["data"]
    lock = make_lock(run["model_type"], run["settings"], run["seed"], data["split_seed"], data["sha256"])
    edit_json("results.json", render=True, lock__recipe=lock.recipe, lock__sha256=lock.sha256)(folder)


def write(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def drop_tensor(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors.pop("head.classifier.bias")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


class Evil:
    def __reduce__(self):
        return os.system, ("touch planted",)


def flip(folder, bit=0x80):
    """Change one bit of the last byte, the sign of a weight."""
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-1] ^= bit
    (folder / "model.safetensors").write_bytes(content)
