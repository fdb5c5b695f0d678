"""Whether the lock of a repository's test part is the lock of its own recipe, seeds, split and metric."""

from hub_unets.hub_repos.checks.untrusted import read_json
from hub_unets.training.errors import UserError
from hub_unets.training.records.locks import PARTS, code_sha256, is_seen_before, make_lock


def check_lock(folder):
    """Every digest but the code's follows from results.json; returns how often the test part was scored.

    The code's is compared with the code that is installed, which may be another release's than the run's.
    """
    results = read_json(folder / "results.json")
    lock = results.get("lock")
    if lock is None:
        return "none: nothing tells how often the test part was scored"
    run, data = results["run"], results["data"]
    seeds = run.get("seed"), data["split_seed"]
    ours = make_lock(run["model_type"], run["settings"], *seeds, data["sha256"], code=lock["code"])
    for part in (*PARTS, "sha256"):
        if lock[part] != getattr(ours, part):
            raise UserError(f"results.json: lock.{part} is {lock[part]}, the rest of it gives {getattr(ours, part)}")
    before = "seen before, " if is_seen_before(lock) else ""
    earlier = sum(entry["scorings"] for entry in lock["earlier"])
    code = "the code that is installed" if lock["code"] == code_sha256() else "other code than is installed"
    return f"the test part was scored {lock['scorings']} times under it, {before}{earlier} times earlier; {code}"
