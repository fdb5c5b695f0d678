"""The accuracy page, its picture and README's table: `hub-unets report [FOLDER]`.

Everything is read from the records that `hub-unets keep` left in FOLDER (default: hub_repos/published):
RECIPE/seeds/RUN, with a run's evaluations in sub-folders, RECIPE/ablations/TRIAL, RECIPE/folds/CHOICE, and
cards/CARD/RUN with cards/cards.yaml. Only the figures of other papers and cards are written by hand.
"""

import argparse
from pathlib import Path

from hub_unets.hub_repos.accuracy.cards import load_cards
from hub_unets.hub_repos.accuracy.page import PAGE, PICTURE, PUBLISHED, page, short_table, with_table
from hub_unets.hub_repos.accuracy.pictures import draw
from hub_unets.hub_repos.accuracy.records import load
from hub_unets.training.errors import run_command

PROJECT = Path(__file__).resolve().parents[1]


def write(folder, readme):
    """Write the page and its picture into `folder`, and the table into README.md."""
    recipes = load(folder)
    text = with_table(readme.read_text(encoding="utf-8"), short_table(recipes))
    (folder / PAGE).write_text(page(recipes, load_cards(folder)), encoding="utf-8")
    draw(recipes, folder / PICTURE, PUBLISHED)
    readme.write_text(text, encoding="utf-8")


def main(argv=None):
    parser = argparse.ArgumentParser(prog="hub-unets report", description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=PROJECT / "hub_repos" / "published", help="of records")
    parser.add_argument("--readme", type=Path, default=PROJECT / "README.md", help="file whose table is made anew")
    arguments = parser.parse_args(argv)
    write(arguments.folder, arguments.readme)
    print(f"{arguments.folder / PAGE}, {PICTURE} and the table of {arguments.readme}")


if __name__ == "__main__":
    run_command(main)
