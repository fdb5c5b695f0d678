"""The lock that a repository shows is that of its own results; its card says how often the test part was scored."""

import json
import re

import pytest

from hub_unets.hub_repos.checks.locks import check_lock
from hub_unets.hub_repos.repository.card import render_card


def changed(folder, tmp_path, **changes):
    """A folder with the repository's results.json, its lock changed."""
    results = json.loads((folder / "results.json").read_text())
    results["lock"] |= changes
    (tmp_path / "results.json").write_text(json.dumps(results))
    return tmp_path


def test_the_lock_follows_from_the_results(repository):
    found = check_lock(repository)
    code = "by the metric and code that are installed"
    assert found == f"the test part was scored 1 times under it, {code}; 0 times earlier"


@pytest.mark.parametrize("part", ["recipe", "seeds", "split", "sha256"])
def test_another_digest_is_found(part, repository, tmp_path):
    with pytest.raises(ValueError, match=rf"results.json: lock.{part} is f{{64}}, the rest of it gives \w{{64}}"):
        check_lock(changed(repository, tmp_path, **{part: "f" * 64}))


@pytest.mark.parametrize("part", ["metric", "code"])
def test_another_metric_or_code_is_said_and_moves_the_whole(part, repository, tmp_path):
    with pytest.raises(ValueError, match="lock.sha256 is") as error:
        check_lock(changed(repository, tmp_path, **{part: "f" * 64}))
    whole = str(error.value).rsplit(" ", 1)[1]
    assert "by another metric or code than" in check_lock(
        changed(repository, tmp_path, **{part: "f" * 64, "sha256": whole})
    )


def test_an_older_record_has_none(repository, tmp_path):
    results = json.loads((repository / "results.json").read_text())
    del results["lock"]
    (tmp_path / "results.json").write_text(json.dumps(results))
    assert check_lock(tmp_path).startswith("none: ")
    card = render_card(repository, results)
    assert "Nothing was locked before the test part was scored" in card and "under lock" not in card


def entry(letter, *parts, scorings=1):
    return {"sha256": letter and letter * 64, "scorings": scorings, "changed": list(parts)}


@pytest.mark.parametrize(
    ("earlier", "said"),
    [
        ([], "No earlier scoring by this variant was found in the logs beside it."),
        ([entry("a", "seeds", scorings=2)], "With other seeds: 2 times under lock `aaaaaaaaaaaaaaaa` (other seeds)."),
        (
            [entry("a", "recipe", "code"), entry(None, scorings=3)],
            "**Seen before**: once under lock `aaaaaaaaaaaaaaaa` (other recipe, code), 3 times under no lock.",
        ),
        (
            [entry("a", "recipe")] * 8 + [entry("b", "code", scorings=2)] * 2,
            "(other recipe) and 4 times under 2 more.",
        ),
    ],
)  # fmt: skip
def test_the_card_counts_the_scorings(earlier, said, repository):
    results = json.loads((repository / "results.json").read_text())
    results["lock"] |= {"scorings": 2, "earlier": earlier}
    (line,) = re.findall(r"^Recipe, seeds, split, metric and code .*$", render_card(repository, results), re.M)
    line = line.replace("ˢ", "")  # the counts are stated
    assert f"scored 2 times under lock `{results['lock']['sha256'][:16]}`. " in line
    assert line.endswith(said)
