"""Every number on a card passes a filter of its kind, and a kind promises no more than the checks hold."""

import copy
import re
from pathlib import Path

import jinja2
import pytest
import yaml

from hub_unets.hub_repos.repository import card, marks
from hub_unets.hub_repos.repository.card import METADATA, TEMPLATE, Standing, render_card, render_marked
from hub_unets.training.records.results import read_results

PUBLISHED = Path(__file__).parents[3] / "hub_repos" / "published" / "unet_polyps"
NUMBER = r"(?<![\w.])\.?\d+(?:[.,]+\d+)*"
WORDS = {  # numbers of the template's own words, which no results.json can change: rules and settings of the release
    "95", "2.0", ".001", ".5", "1911.07069", "2020", "0", "1", "2", "1.0", "0..1", "64", "43", "2015",
}  # fmt: skip


def nodes(kind):
    return marks.environment().parse(TEMPLATE.read_text(encoding="utf-8")).find_all(kind)


def outputs(node):
    """What an expression of the template may write: the branches of a condition, else itself."""
    if isinstance(node, jinja2.nodes.CondExpr):
        return [inner for branch in (node.expr1, node.expr2) if branch is not None for inner in outputs(branch)]
    return [node]


def test_every_expression_of_the_template_passes_a_filter_of_its_kind():
    inside = [output for macro in nodes(jinja2.nodes.Macro) for output in macro.find_all(jinja2.nodes.Output)]
    for output in nodes(jinja2.nodes.Output):  # what a macro writes passes a filter where it is called
        if any(output.lineno == other.lineno and output == other for other in inside):
            continue
        for node in (inner for child in output.nodes for inner in outputs(child)):
            constant = isinstance(node, (jinja2.nodes.TemplateData, jinja2.nodes.Const))
            metadata = isinstance(node, jinja2.nodes.Name) and node.name == "card_data"
            kind = isinstance(node, jinja2.nodes.Filter) and node.name in marks.KINDS
            assert constant or metadata or kind, f"line {node.lineno} of the template: {node}"
            assert not (isinstance(node, jinja2.nodes.Const) and re.search(r"\d", str(node.value))), node


def test_the_templates_own_words_hold_no_figure():
    text = "".join(node.data for node in nodes(jinja2.nodes.TemplateData))
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)  # snippets are run, and compared with the template
    assert set(re.findall(NUMBER, prose)) <= WORDS


def leaves(value, place=""):
    """(place, text) of every value in YAML; lists add nothing to a place."""
    if isinstance(value, dict):
        return [leaf for name, inner in value.items() for leaf in leaves(inner, f"{place}.{name}".strip("."))]
    if isinstance(value, list):
        return [leaf for inner in value for leaf in leaves(inner, place)]
    return [(place, str(value))]


def results_of(folder, **changes):
    """results.json of a folder with every figure that a card can show."""
    results = read_results(folder / "results.json")
    results["run"] |= {"gmacs": 12.345, "best": {"step": 1, "epoch": 3.0, "dice": 0.4321}}
    results["run"]["started_from"] = {"repo_id": "someone/unet2", "commit": "a1" * 20}
    results["cost"] |= {"latency": {"p50": 41.6, "p95": 77.7, "images": 20, "threads": 2}, "peak_memory_mb": 1234.0}
    results["lock"] = {"time": "2026-11-28T20:00:00+00:00", "sha256": "a1" * 32, "scorings": 2} | {
        "earlier": [{"sha256": sha256, "scorings": 3, "changed": ["recipe"]} for sha256 in ["b2" * 32, None] * 5]
    }
    results["sweep"] = Standing("family 7", "resnet50", 3, 6, "me/family-1")._asdict()
    return copy.deepcopy(results) | changes


def without(results, *names):
    """Without these figures of every part."""
    for metrics in results["metrics"].values():
        for name in names:
            metrics.pop(name, None)
    return results


def unscored(results):
    metrics = results["metrics"]
    return results | {"metrics": {"validation": metrics["validation"]}}


def elsewhere(results):
    results["data"] |= {"source": "clinic-7", "split": "80/10/10"}
    return results


def bare(results):
    del results["calibration"], results["sweep"]
    results["cost"].pop("latency"), results["run"].pop("gmacs")
    return without(results, "polyps", "boundary", "calibration", "false_alarms", "by_size")


CARDS = {"as it is": read_results(PUBLISHED / "results.json")} | {
    name: change(results_of(PUBLISHED))
    for name, change in {
        "all figures": lambda results: results,
        "no test part": unscored,
        "no twins": lambda results: results["metrics"].pop("test_without_twins") and results,
        "no outlines": lambda results: without(results, "boundary"),
        "bare": bare,
        "other data": elsewhere,
    }.items()
}


def check_every_number(folder, results, repo_id=None, revision=None):
    """Every number of a card is of a kind, or the template's; a figure has its mark, or its column has."""
    marked = render_marked(folder, results, repo_id, revision)
    _, metadata, body = marked.split("---\n", 2)
    for place, text in leaves(yaml.safe_load(metadata)):
        kinds = [kind for field, kind in METADATA.items() if f"{place}.".startswith(f"{field}.")]
        assert not re.search(r"\d", text) or kinds, f"metadata: {place} is {text}"
    code = re.compile(r"```.*?```", re.DOTALL)
    left = code.sub("", marks.unmarked(body))
    assert set(re.findall(NUMBER, left)) <= WORDS
    assert set(METADATA.values()) | {kind for kind, _ in marks.marked_numbers(body)} <= marks.KINDS.keys()
    shown = code.sub("", render_card(folder, results, repo_id, revision))
    assert marks.OPEN not in shown and marks.CLOSE not in shown
    check_marks(body, shown)
    return marks.marked_numbers(body)


def check_marks(body, shown):
    """As many marks as figures outside of tables; and in a table a mark in the column or behind the figure."""
    shown = shown.split("---\n", 2)[2].replace(marks.legend(), "")
    prose, figures = (
        "\n".join(line for line in text.split("\n") if not line.startswith("|")) for text in (shown, body)
    )
    for name in marks.FIGURES:
        there = [text for kind, text in marks.marked_numbers(figures) if kind == name and marks.NUMBER.search(text)]
        assert prose.count(marks.KINDS[name].sign) == len(there)
    tables = re.findall(r"(?:^\|.*\n)+", shown, re.MULTILINE)
    unmarked_tables = re.findall(r"(?:^\|.*\n)+", body, re.MULTILINE)
    for table, original in zip(tables, unmarked_tables, strict=True):
        heading, _, *rows = (line.split("|") for line in table.splitlines())
        for row, line in zip(rows, original.splitlines()[2:], strict=True):
            for title, cell, source in zip(heading, row, line.split("|"), strict=True):
                signs = {
                    marks.KINDS[kind].sign for kind, text in marks.marked_numbers(source) if re.search(r"\d", text)
                }
                assert all(sign in title or sign in cell for sign in signs), (title, cell)


@pytest.mark.parametrize("results", CARDS.values(), ids=CARDS)
def test_every_number_of_a_card_is_of_a_kind(results):
    numbers = check_every_number(PUBLISHED, results, "someone/unet-2", "v3")
    assert {kind for kind, _ in numbers} >= {"files", "data", "stated"}


def test_every_number_of_a_built_card_is_of_a_kind(repository, three_class_checkpoint):
    for folder in (repository, three_class_checkpoint):
        check_every_number(folder, read_results(folder / "results.json"))


def test_a_number_without_a_kind_is_found(tmp_path, monkeypatch):
    text = TEMPLATE.read_text(encoding="utf-8")
    (tmp_path / "card.jinja").write_text(text.replace("| files }} parameters", "}} parameters"), encoding="utf-8")
    monkeypatch.setattr(card, "TEMPLATE", tmp_path / "card.jinja")
    with pytest.raises(AssertionError, match="4,163,777"):
        check_every_number(PUBLISHED, CARDS["as it is"])


def test_a_column_of_one_kind_is_marked_in_its_heading_and_another_in_its_cells():
    made = marks.environment().from_string(
        "| a | b | c |\n|---|---|---|\n"
        "| {{ 1 | files }} | {{ 2 | files }} | {{ 'x' | stated }} |\n| {{ 3 | files }} | {{ 4 | data }} | 5 |"
    )
    assert marks.show_marks(made.render()).splitlines() == [
        "| a ʳ | b | c |", "|---|---|---|", "| 1 | 2ʳ | x |", "| 3 | 4ᵈ | 5 |"
    ]  # fmt: skip


@pytest.mark.parametrize("text", ["| 1 | 2 |", "| a |\n| 3 |\n| 4 |", "| a |\n|---|\n| 5 | 6 | 7 |", "|\n|---|\n|"])
def test_what_is_no_table_is_left_as_it_is(text):
    assert marks.show_marks(text) == text


def test_a_text_cannot_pass_for_a_figure():
    forged = f"{marks.OPEN}files 0.99{marks.CLOSE}"
    made = marks.environment().from_string("{{ text | name }}").render(text=forged)
    assert marks.marked_numbers(made) == [("name", "files 0.99")]


def test_a_figure_with_its_interval():
    assert marks.interval({"value": 0.5, "low": 0.25, "high": 0.75}, 2) == "0.50 (0.25–0.75)"
    assert (marks.digits(None), marks.digits(1 / 3), marks.percent(0.025)) == ("–", "0.3333", "2.5 %")
