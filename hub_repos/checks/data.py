"""How the images and masks at hand differ from those that a repository was scored on."""

from hub_unets.hub_repos.checks.untrusted import open_file
from hub_unets.training.errors import UserError
from hub_unets.training.records.data_digests import DATA_DIGESTS, read_data_digests
from hub_unets.training.records.results import read_per_image

MOST_NAMES = 10
CHANGED = "changed"


def stored_digests(folder):
    """{part: {name: PairDigests}} of a repository; empty where it holds none, as of older releases."""
    path = folder / DATA_DIGESTS
    if not path.exists():
        return {}
    open_file(path).close()
    return read_data_digests(path)


def check_data_digests(folder):
    """data_digests.csv has just the images of per_image.csv."""
    stored = stored_digests(folder)
    if not stored:
        return "none: nothing tells which pixels were scored"
    scored, _ = read_per_image(folder / "per_image.csv")
    for part in stored.keys() | scored.keys():
        names = set(scored[part].names) if part in scored else set()
        if differing := stored.get(part, {}).keys() ^ names:
            raise UserError(f"{DATA_DIGESTS}: {min(differing)[:80]} is not as {part[:20]} in it and in per_image.csv")
    return f"{sum(map(len, stored.values()))} images and masks"


def require_present(stored, names):
    """Raise UserError naming the images of `stored` that are not among `names`."""
    if missing := sorted({name for pairs in stored.values() for name in pairs} - set(names)):
        raise UserError(f"missing: {_listed(missing)}")


def compare_digests(stored, scores):
    """What differs between the stored PairDigests of a part, {name: PairDigests}, and its Scores.

    Returns:
        str: which files were only stored anew.

    Raises:
        UserError: pixels of an image or labels of a mask changed; says of which.
    """
    differing = {}
    for name, here in zip(scores.names, scores.digests, strict=True):
        for kind in ("image", "mask"):
            if difference := _difference(here, stored[name], kind):
                differing.setdefault(f"{kind} {difference}", []).append(name)
    said = "; ".join(f"{kind}: {_listed(names)}" for kind, names in sorted(differing.items()))
    if any(kind.endswith(CHANGED) for kind in differing):
        raise UserError(said)
    return "; ".join(filter(None, [f"{len(scores.names)} images and masks", said or "every file the same"]))


def _difference(here, there, kind):
    """How an image or a mask differs from what was scored; the same file is the same, whatever decodes it."""
    same_file, same_pixels = (getattr(here, field) == getattr(there, field) for field in (kind, f"{kind}_pixels"))
    if same_file:
        return "" if same_pixels else "decoded otherwise on this machine"
    return "re-encoded only" if same_pixels else CHANGED


def _listed(names):
    """A count, and the first names."""
    more = ", ..." if len(names) > MOST_NAMES else ""
    return f"{len(names)} ({', '.join(name[:80] for name in names[:MOST_NAMES])}{more})"
