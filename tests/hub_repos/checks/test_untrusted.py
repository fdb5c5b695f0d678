import json

import pytest
import torch
from safetensors.torch import save_file

from hub_unets.hub_repos.checks.untrusted import parse_json, read_json, read_tensors, read_text


def entry(begin, end, shape=None, dtype="F32"):
    shape = [(end - begin) // 4] if shape is None else shape
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def write(path, header, data=b"\0" * 16, length=None):
    text = header if isinstance(header, bytes) else json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def test_a_file_of_safetensors_is_read_as_it_was_written(tmp_path):
    tensors = {
        "a": torch.zeros(2, 3),
        "b": torch.zeros((), dtype=torch.int64),
        "c": torch.zeros(0, 4, dtype=torch.bfloat16),
    }
    save_file(tensors, tmp_path / "x.safetensors", {"format": "pt"})
    assert read_tensors(tmp_path / "x.safetensors") == {"a": ("F32", (2, 3)), "b": ("I64", ()), "c": ("BF16", (0, 4))}


@pytest.mark.parametrize(
    ("header", "options", "message"),
    [
        ({"a": entry(0, 16)}, {"length": 2**40}, "header of 1099511627776 bytes does not fit"),
        ({"a": entry(0, 16)}, {"length": 1}, "header of 1 bytes does not fit"),
        ({"a": entry(0, 16)}, {"data": b"\0" * 17}, "1 trailing bytes"),
        ({}, {}, "16 trailing bytes"),
        ({"a": entry(0, 32)}, {}, "out of range"),
        ({"a": entry(16, 0, [0])}, {}, "out of range"),
        ({"a": entry(0, 16) | {"data_offsets": [0]}}, {}, "out of range"),
        ({"a": entry(0, 12), "b": entry(8, 16)}, {}, "'b' overlaps"),
        ({"a": entry(0, 16), "b": entry(0, 16)}, {}, "'b' overlaps"),
        ({"a": entry(0, 4), "b": entry(8, 16)}, {}, "'b' leaves a gap"),
        ({"a": entry(4, 16)}, {}, "'a' leaves a gap"),
        ({"a": entry(0, 16, dtype="OBJECT")}, {}, "unknown dtype 'OBJECT'"),
        ({"a": entry(0, 16, dtype=["F32"])}, {}, "unknown dtype"),
        ({"a": entry(0, 16, [5])}, {}, "does not take 16 bytes"),
        ({"a": entry(0, 16, [-2, -2])}, {}, "whole numbers"),
        ({"a": entry(0, 16, [4.0])}, {}, "whole numbers"),
        ({"a": entry(0, 16) | {"data_offsets": [False, 16]}}, {}, "whole numbers"),
        ({"a": entry(0, 16) | {"more": 1}}, {}, "nothing else"),
        ({"a": 1}, {}, "nothing else"),
        ({"__metadata__": {"format": "pt", "note": "x"}}, {}, "metadata"),
        (b"[1]", {}, "no JSON object"),
        (b"{'a': 1}", {}, "not JSON"),
        (b"\xff\xfe", {}, "not text"),
        (b'{"a": 1, "a": 2}', {}, "'a' is repeated"),
        (b"[" * 100_000, {}, "not JSON"),
    ],
)
def test_a_malformed_header_is_refused_by_name(header, options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        read_tensors(write(tmp_path / "model.safetensors", header, **options))


def test_a_short_file_is_refused(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"\2\0\0")
    with pytest.raises(ValueError, match="does not fit a file of 3 bytes"):
        read_tensors(tmp_path / "model.safetensors")


@pytest.mark.parametrize("text", ['{"a": 1, "a": 1}', "[NaN]", "[-Infinity]", "[1e999]", "{", "[" * 100_000])
def test_json_that_readers_understand_differently_is_refused(text):
    with pytest.raises(ValueError, match=r"x\.json is not JSON"):
        parse_json(text, "x.json")


def test_json_is_read(tmp_path):
    (tmp_path / "x.json").write_text('{"a": [1, 2.5, null, {"a": "ü"}]}', encoding="utf-8")
    assert read_json(tmp_path / "x.json") == {"a": [1, 2.5, None, {"a": "ü"}]}


@pytest.mark.parametrize("content", [b"\xff", b"a\0b"])
def test_what_is_no_text_is_refused(content, tmp_path):
    (tmp_path / "x.md").write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.md is not text"):
        read_text(tmp_path / "x.md")


def test_only_plain_files_are_opened(tmp_path):
    (tmp_path / "link").symlink_to("/dev/zero")
    for name, message in (("link", "symbolic link"), (".", "folder"), ("nothing", "missing")):
        with pytest.raises(ValueError, match=message):
            read_text(tmp_path / name)
