"""The repository and revision that a card's snippets load."""

import time

import pytest

from hub_unets.hub_repos.checks.figures import (
    check_named,
    loaded_repository,
    snippets,
)

CARD = 'segment = pipeline("image-segmentation", model={}, trust_remote_code=True)\n'


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("MODEL", (None, None)),
        ('"a/b.c-d"', ("a/b.c-d", None)),
        ('"a/b", revision="v1.0"', ("a/b", "v1.0")),
    ],
)
def test_the_repository_of_the_snippets_is_read(arguments, expected):
    assert loaded_repository(CARD.format(arguments)) == expected


def test_a_long_card_is_searched_in_one_go():
    started = time.process_time()
    with pytest.raises(ValueError, match="first snippet must load"):
        loaded_repository("segment = pipeline(" + ", model=" * 32_000)
    assert time.process_time() - started < 2


@pytest.mark.parametrize(
    ("arguments", "repo_id", "revision", "message"),
    [
        ('"a/b"', None, None, r"load a/b, and a folder can't tell .*: if it is, add --repo_id a/b$"),
        ('"a/b", revision="v1"', None, None, "add --repo_id a/b --revision v1$"),
        ('"a/b", revision="v1"', "a/c", "v1", "the snippets load a/b, and this is a/c"),
        ('"a/b", revision="evil"', "a/b", "v1", "the snippets load revision 'evil', and this is v1"),
        ('"a/b", revision="evil"', "a/b", None, "the snippets load revision 'evil', and this is none"),
    ],
)
def test_snippets_that_load_another_repository_or_revision_are_found(arguments, repo_id, revision, message, tmp_path):
    (tmp_path / "README.md").write_text(CARD.format(arguments))
    with pytest.raises(ValueError, match=message):
        check_named(tmp_path, repo_id, revision)


@pytest.mark.parametrize(
    "arguments", ['"a"', '"../a/b"', '"a/b", revision=x()', '"a/b"); x("', "MODEL, x=1", '"ä/b"', '"a/b\\n"']
)
def test_another_form_of_it_is_refused(arguments):
    with pytest.raises(ValueError, match="first snippet must load"):
        loaded_repository(CARD.format(arguments))


def test_snippets_are_made_to_load_the_folder(repository):
    texts = snippets(repository, "/x/image.png")
    assert len(texts) == 4
    for text in texts:
        assert repr(str(repository)) in text and "'/x/image.png'" in text
        assert "MODEL" not in text and "image.jpg" not in text and "```" not in text
