"""What a test part was scored under: recipe, seeds, split, metric and code, locked before, and how often before.

A lock is written to scorings.log before the scoring that it is for. Earlier locks are looked for in the logs of the
folder, of the folder around it, and of the folders in either: the runs and evaluations beside it.
"""

import hashlib
import json
import re
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from hub_unets.training.measure import boundaries, false_alarms, polyps, reliability
from hub_unets.training.measure.metrics import NAMES, WITH_BACKGROUND

SCORINGS = "scorings.log"
PROJECT = Path(__file__).resolve().parents[2]
CODE_FOLDERS = ("configuration", "modeling", "training")
NOT_LOCKED = {  # settings that are locked as seeds, or that move no figure
    *("seed", "split_seed", "output_dir", "dataloader_num_workers", "disable_tqdm", "batch_size", "trust_remote_code"),
}
PARTS = ("recipe", "seeds", "split", "metric", "code")
UNLOCKED = re.compile(r"(?P<time>\S+) test \d+ images")
LOCKED = re.compile(
    rf"{UNLOCKED.pattern} lock (?P<sha256>[0-9a-f]{{64}}) family (?P<family>\S+)"
    + "".join(rf" {part} (?P<{part}>[0-9a-f]{{64}})" for part in PARTS)
)


@dataclass(frozen=True)
class Lock:
    """The sha256, in hex, of each part; `family` is the variant."""

    family: str
    recipe: str
    seeds: str
    split: str
    metric: str
    code: str

    @property
    def sha256(self):
        return _sha256(asdict(self))

    def __str__(self):
        """As a line of scorings.log has it."""
        parts = " ".join(f"{part} {getattr(self, part)}" for part in PARTS)
        return f"lock {self.sha256} family {self.family} {parts}"


def make_lock(model_type, settings, seed, split_seed, split_sha256, metric=None, code=None):
    """The Lock of a scoring: recipe, seeds and split follow from what results.json says.

    Args:
        model_type: the variant.
        settings: names to values, as results.json holds them.
        seed: the training's; None for an evaluation.
        split_seed, split_sha256: the Partition's.
        metric, code: their sha256; None takes those of the code on this machine.
    """
    recipe = {name: value for name, value in settings.items() if name not in NOT_LOCKED}
    seeds = {"seed": seed, "split_seed": split_seed}
    family = re.sub(r"\s", "-", model_type)
    own = metric or metric_sha256(), code or code_sha256()
    return Lock(family, _sha256(recipe), _sha256(seeds), split_sha256, *own)


def metric_sha256():
    """The digest of what the figures mean: their names, and the definition of each that has one."""
    return _sha256(
        {
            "overlap": list(NAMES),
            "with_background": WITH_BACKGROUND,
            "polyps": polyps.DEFINITION,
            "boundary": boundaries.RULE,
            "calibration": reliability.DEFINITION,
            "false_alarms": false_alarms.DEFINITION,
        }
    )


def code_sha256():
    """The digest of the Python source that trains and scores: the sorted lines "path<tab>sha256"."""
    paths = [path for folder in CODE_FOLDERS for path in (PROJECT / folder).rglob("*.py")]
    lines = sorted(
        f"{path.relative_to(PROJECT).as_posix()}\t{hashlib.sha256(path.read_bytes()).hexdigest()}\n" for path in paths
    )
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _sha256(value):
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def log_scoring(folder, part, count, why="", lock=None):
    """A line of scorings.log: when (UTC), which part, how many images, and for a test part the Lock."""
    line = " ".join(filter(None, [_now(), part, f"{count} images", why, str(lock or "")]))
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / SCORINGS).open("a", encoding="utf-8") as log:
        log.write(f"{line}\n")


def _now():
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def lock_record(folder, lock):
    """What results.json says of a lock after its last line in the folder's log.

    Returns:
        dict: its digests; `time`, of the last scoring; `scorings`, how many under it; `earlier`, one entry for each
        earlier lock of the same split and family, with `changed`, the parts that differ. Scorings that an older
        release logged without a lock are an entry without a digest.
    """
    mine, others = [], {}
    for found in _locked(folder):
        if found["sha256"] == lock.sha256:
            mine.append(found["time"])
        elif (found["family"], found["split"]) == (lock.family, lock.split):
            others.setdefault(found["sha256"], []).append(found)
    last = max(mine, default=_now())
    earlier = [_earlier(lock, found) for found in others.values() if min(line["time"] for line in found) <= last]
    if unlocked := sum(map(bool, map(UNLOCKED.fullmatch, _lines(Path(folder) / SCORINGS)))):
        earlier.append({"sha256": None, "scorings": unlocked, "changed": []})
    digests = {name: value for name, value in asdict(lock).items() if name != "family"}
    return {"sha256": lock.sha256, "time": last, **digests, "scorings": max(1, len(mine)), "earlier": earlier}


def _earlier(lock, lines):
    changed = [part for part in PARTS if lines[0][part] != getattr(lock, part)]
    return {"sha256": lines[0]["sha256"], "scorings": len(lines), "changed": changed}


def _locked(folder):
    """The locked test scorings in the logs of a folder and of those around it, oldest first, as dictionaries."""
    folder = Path(folder).resolve()
    around = {folder, folder.parent, *_entries(folder), *_entries(folder.parent)}
    lines = [line for place in sorted(around) for line in _lines(place / SCORINGS)]
    matches = filter(None, map(LOCKED.fullmatch, lines))
    return sorted((match.groupdict() for match in matches), key=lambda found: found["time"])


def _entries(folder):
    try:
        return list(folder.iterdir())
    except OSError:  # another's, which can't be seen
        return []


def _lines(path):
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    except OSError:
        return []


def is_seen_before(lock):
    """Whether the test part was seen in choosing: an earlier lock of its family differs in more than seeds.

    Args:
        lock: of a results.json.
    """
    return any(set(entry["changed"]) != {"seeds"} for entry in lock["earlier"])
