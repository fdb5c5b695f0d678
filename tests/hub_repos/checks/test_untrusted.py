import os

import pytest

from hub_unets.hub_repos.checks.untrusted import MAX_DEPTH, parse_json, read_json, read_text


@pytest.mark.parametrize(
    "text",
    [
        '{"a": 1, "a": 1}', "[NaN]", "[-Infinity]", "[1e999]", "{", "[" * 100_000,
        "[" * (MAX_DEPTH + 2) + "]" * (MAX_DEPTH + 2), "[" + "9" * 5000 + "]", "[9223372036854775808]", r'["\ud800"]',
        r'{"\udc00": 1}',
    ],
    ids=lambda text: text[:20],
)  # fmt: skip
def test_json_that_readers_understand_differently_is_refused(text):
    with pytest.raises(ValueError, match=r"x\.json is not JSON") as error:
        parse_json(text, "x.json")
    assert len(str(error.value)) < 300


def test_json_is_read(tmp_path):
    (tmp_path / "x.json").write_text('{"a": [1, 2.5, null, {"a": "ü"}, -9223372036854775808]}', encoding="utf-8")
    assert read_json(tmp_path / "x.json") == {"a": [1, 2.5, None, {"a": "ü"}, -(2**63)]}
    (tmp_path / "x.json").write_text("[1]", encoding="utf-8")
    with pytest.raises(ValueError, match=r"x\.json must map names to values, got \[1\]"):
        read_json(tmp_path / "x.json")


@pytest.mark.parametrize("content", [b"\xff", b"a\0b"])
def test_a_file_that_is_no_text_is_refused(content, tmp_path):
    (tmp_path / "x.md").write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.md is not text"):
        read_text(tmp_path / "x.md")


def test_only_plain_files_are_opened(tmp_path):
    (tmp_path / "link").symlink_to("/dev/zero")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "folder", "pipe", "nothing", "link/x"):
        with pytest.raises(ValueError, match=f"{name.rpartition('/')[2]} (is|can't be read)"):
            read_text(tmp_path / name)
