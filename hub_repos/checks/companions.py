"""Checks of what stands beside the card: licence, notebook and .eval_results, byte for byte what the release makes."""

from hub_unets.hub_repos.checks.figures import loaded_repository
from hub_unets.hub_repos.checks.untrusted import read_bytes, read_json, read_text
from hub_unets.hub_repos.repository.builder import companions
from hub_unets.hub_repos.repository.eval_results import EVAL_RESULTS
from hub_unets.hub_repos.repository.licence import LICENCE
from hub_unets.hub_repos.repository.notebook import NOTEBOOK
from hub_unets.training.errors import UserError


def check_companions(folder):
    """Raise UserError unless they are those of results.json and of the repository that the card names."""
    repo_id, revision = loaded_repository(read_text(folder / "README.md"))
    wanted = companions(folder, read_json(folder / "results.json"), repo_id, revision)
    present = {name for name in (LICENCE, NOTEBOOK, EVAL_RESULTS) if (folder / name).exists()}
    for name in sorted(present ^ wanted.keys()):
        reason = "is missing" if name in wanted else "is there, and results.json gives none"
        raise UserError(f"{name} {reason}")
    for name, text in wanted.items():
        if read_bytes(folder / name) != text.encode():
            raise UserError(f"{name} is not what the release makes of results.json and the card's repository")
