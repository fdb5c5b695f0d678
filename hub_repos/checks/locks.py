"""Whether the lock of a repository's test part is the lock of its own recipe, seeds and split."""

from hub_unets.hub_repos.checks.untrusted import read_json
from hub_unets.training.errors import UserError
from hub_unets.training.records.locks import PARTS, code_sha256, is_seen_before, make_lock, metric_sha256


def check_lock(folder):
    """Recipe, seeds, split and the whole follow from results.json; returns how often the test part was scored.

    The run may be of another commit than what is installed: metric and code are compared with that, and no more.
    """
    results = read_json(folder / "results.json")
    lock, scored = results.get("lock"), "test" in results["metrics"]
    if lock is None:
        return f"none: {'nothing tells how often the' if scored else 'no'} test part was scored"
    run, data = results["run"], results["data"]
    seeds = run.get("seed"), data["split_seed"]
    ours = make_lock(run["model_type"], run["settings"], *seeds, data["sha256"], lock["metric"], lock["code"])
    for part in (*PARTS, "sha256"):
        if lock[part] != getattr(ours, part):
            raise UserError(f"results.json: lock.{part} is {lock[part]}, the rest of it gives {getattr(ours, part)}")
    before = "seen before, " if is_seen_before(lock) else ""
    earlier = sum(entry["scorings"] for entry in lock["earlier"])
    same = (lock["metric"], lock["code"]) == (metric_sha256(), code_sha256())
    code = "by the metric and code that are installed" if same else "by another metric or code than are installed"
    return f"the test part was scored {lock['scorings']} times under it, {code}; {before}{earlier} times earlier"
