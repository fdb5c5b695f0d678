"""The accuracy page, its picture and README's table: `python -m hub_repos.report [FOLDER]`.

Everything is read from the records that hub_repos.keep left in FOLDER (default: hub_repos): RECIPE/seeds/RUN, with the
evaluations of a run in folders of its own, and RECIPE/ablations/TRIAL. No figure is written here by hand but those of
other papers.
"""

import sys
from pathlib import Path

from hub_unets.hub_repos.accuracy.page import PAGE, PICTURE, PUBLISHED, page, results_table, with_table
from hub_unets.hub_repos.accuracy.pictures import draw
from hub_unets.hub_repos.checks.isolated import load

PROJECT = Path(__file__).resolve().parents[1]


def write(folder, readme):
    """Write the page and its picture into `folder`, and the table into README.md."""
    recipes = load(folder)
    text = with_table(readme.read_text(encoding="utf-8"), results_table(recipes))
    (folder / PAGE).write_text(page(recipes), encoding="utf-8")
    draw(recipes, folder / PICTURE, PUBLISHED)
    readme.write_text(text, encoding="utf-8")


def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    folder = Path(argv[0]) if argv else PROJECT / "hub_repos"
    write(folder, PROJECT / "README.md")
    print(f"{folder / PAGE}, {PICTURE} and the table of README.md")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
