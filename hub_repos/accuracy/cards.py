"""Other people's cards beside our runs on the same terms: cards/cards.yaml, and the runs in cards/NAME/."""

import yaml

from hub_unets.hub_repos.accuracy.records import Record
from hub_unets.training.errors import UserError
from hub_unets.training.records.markdown import table

FOLDER, FILE = "cards", "cards.yaml"
FIELDS = ("card", "figure", "metric", "terms", "differs")


class Card:
    """A card, and our run that answers it: of several the one with the highest validation Dice.

    Raises:
        UserError: the card lacks a field, or the run its metric.
    """

    def __init__(self, name, fields, records):
        if not isinstance(fields, dict) or set(fields) != set(FIELDS):
            raise UserError(f"{FILE}: {name} must have the fields {', '.join(FIELDS)}, got {str(fields)[:200]}.")
        self.name, self.fields, self.runs = name, fields, len(records)
        self.record = max(records, key=lambda record: record.value("validation", "per_image", "dice"))
        self.ours = self.estimate(*fields["metric"].split("."))

    def estimate(self, *keys):
        """A figure of the test part with its interval."""
        figure = self.record.metrics("test") or {}
        for key in keys:
            figure = figure.get(key) or {}
        if not {"value", "low", "high"} <= figure.keys():
            raise UserError(f"{self.record.folder}: its test part has no {'.'.join(keys)}, which {FILE} asks for.")
        return figure


def load_cards(folder):
    """The cards whose runs are kept in a folder of records, in the file's order; none where there is no file.

    Raises:
        UserError: the file is not one of cards, or runs are kept of a card that it does not name.
    """
    path = folder / FOLDER / FILE
    if not path.is_file():
        return []
    try:
        cards = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not YAML: {error}") from error
    if not isinstance(cards, dict):
        raise UserError(f"{path} must map names of recipes to cards.")
    paths = {}
    for results in sorted(path.parent.glob("*/*/results.json")):
        paths.setdefault(results.parents[1].name, []).append(results.parent)
    if unknown := sorted(paths.keys() - cards.keys()):
        raise UserError(f"{path} has no card {unknown[0]!r}, of which runs are kept: add it.")
    return [Card(name, cards[name], list(map(Record, paths[name]))) for name in cards if name in paths]


def cards_section(cards, interval):
    """A row for each card: its figure, ours in the same metric and as we define it."""
    rows = []
    for card in cards:
        fields, results = card.fields, card.record.results
        choice = f", the best of {card.runs} on validation" if card.runs > 1 else ""
        rows.append([
            f"`{fields['card']}`", "–" if fields["figure"] is None else f"{fields['figure']:.4f}", fields["terms"],
            interval(card.ours), interval(card.estimate("per_image", "dice")), card.record.metrics("test")["images"],
            f"`{results['run']['name']}`{choice}", fields["differs"],
        ])  # fmt: skip
    header = ["card", "its figure", "terms", "ours", "our Dice per image", "test images", "our run", "what differs"]
    commands = [f"- `{card.record.results['run']['command']}`" for card in cards]
    return (
        "## Published cards, on their own terms\n\nThe card's figure in its own metric, and ours in the same on a "
        "split of the same kind; the test images are not the same ones. Test part, 95 % bootstrap interval over "
        "images.\n\n" + "\n\n".join([table(header, rows), "\n".join(commands)])
    )
