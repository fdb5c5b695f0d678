"""A repository's handler.py keeps the contract of Inference Endpoints, in a process without this project."""

import base64
import json
import os
import pickle
import subprocess
import sys
import time
import warnings
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import EpsImagePlugin, Image

from hub_unets.hub_repos.repository.builder import build
from hub_unets.modeling.handler import FORMATS, EndpointHandler, MaskPng, decode
from hub_unets.modeling.image_processing_unet import UNetImageProcessor
from hub_unets.modeling.modeling_unet import UNetForSemanticSegmentation
from hub_unets.training.data.phantoms import phantom

SCRIPT = Path(__file__).with_name("endpoint.py")
FRAME = Image.fromarray(phantom(7, 0, 96)[0]).crop((0, 0, 96, 70))


def file_of(image, kind="PNG", **options):
    content = BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


def text_of(content):
    return base64.b64encode(content).decode()


PNG = file_of(FRAME)
TEXT = text_of(PNG)


def endpoint(repository, home):
    """Yields a function (data, threads) -> the answer, or the error's text; all threads must get the same."""
    keep = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
    with subprocess.Popen(
        [sys.executable, "-I", SCRIPT, repository],
        cwd=home,
        env={**keep, "HOME": str(home), "HF_HOME": str(home / "cache"), "HF_HUB_OFFLINE": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:

        def ask(data, threads=1):
            pickle.dump((data, threads), process.stdin)
            process.stdin.flush()
            first_answer, *other_answers = pickle.load(process.stdout)
            assert other_answers == [first_answer] * (threads - 1)
            answer, error = first_answer
            return error or json.loads(answer)

        yield ask
        process.kill()


@pytest.fixture(scope="module")
def ask(repository, tmp_path_factory):
    yield from endpoint(repository, tmp_path_factory.mktemp("endpoint"))


@pytest.fixture(scope="module")
def expected(checkpoint):
    """The processor's mask of FRAME at a threshold."""
    model = UNetForSemanticSegmentation.from_pretrained(checkpoint).eval()
    processor = UNetImageProcessor.from_pretrained(checkpoint)
    outputs = model(**processor(FRAME))

    def mask(threshold=None):
        return processor.post_process_semantic_segmentation(outputs, [(70, 96)], threshold)[0].numpy()

    return mask


def union(entries):
    masks = [np.asarray(Image.open(BytesIO(base64.b64decode(entry["mask"])))) for entry in entries]
    assert all(set(np.unique(mask)) == {0, 255} for mask in masks)
    return sum(mask > 0 for mask in masks).astype(np.int64)


@pytest.mark.parametrize(
    "inputs",
    [FRAME, PNG, bytearray(PNG), TEXT, f"data:image/png;base64,{TEXT}", "\n".join([TEXT[:76], TEXT[76:]])],
    ids=["PIL", "bytes", "bytearray", "base64", "data", "lines"],
)
def test_the_union_of_the_entries_is_the_mask(inputs, ask, expected):
    entries = ask({"inputs": inputs})
    assert expected().any() and np.array_equal(union(entries), expected())
    for entry in entries:
        assert entry.keys() == {"label", "score", "mask"} and entry["label"] == "polyp"
        assert 0.5 < entry["score"] <= 1


def test_a_list_of_images_is_answered_by_a_list(ask, expected):
    alone = ask({"inputs": TEXT})
    assert ask({"inputs": [TEXT, FRAME], "parameters": {}}) == [alone, alone]
    assert ask({"inputs": [TEXT], "parameters": None}) == [alone]


def test_parameters(ask, expected):
    unfiltered = ask({"inputs": TEXT})
    assert len({entry["score"] for entry in unfiltered}) > 1
    best = max(entry["score"] for entry in unfiltered)
    best_entries = ask({"inputs": TEXT, "parameters": {"threshold": best}})
    assert best_entries == [entry for entry in unfiltered if entry["score"] == best]
    strict_entries = ask({"inputs": TEXT, "parameters": {"mask_threshold": "0.6"}})  # a text, as in a query
    assert np.array_equal(union(strict_entries), expected(0.6)) and expected(0.6).sum() < expected().sum()
    without_effect = {"subtask": "instance", "overlap_mask_area_threshold": 0.5, "threshold": None}
    assert ask({"inputs": TEXT, "parameters": without_effect}) == unfiltered


def test_eight_threads_at_once_get_the_same_answer(ask):
    assert ask({"inputs": TEXT}, threads=8) == ask({"inputs": TEXT})


def bomb():
    """A PNG of 60000 x 60000 pixels in 3 MB."""

    def chunk(kind, data):
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    header = (60000).to_bytes(4, "big") * 2 + bytes([8, 0, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", bytes(99)) + chunk(b"IEND", b"")


BAD = {
    "no mapping": ("image", "must map `inputs`"),
    "no inputs": ({}, "inputs is missing"),
    "None": ({"inputs": None}, "inputs is missing"),
    "empty list": ({"inputs": []}, "inputs is missing"),
    "empty text": ({"inputs": ""}, "inputs is no image of the formats"),
    "a number": ({"inputs": 5}, "got 5"),
    "a mapping": ({"inputs": {"image": TEXT}}, "inputs must be an image file's bytes"),
    "a list in a list": ({"inputs": [[TEXT]]}, r"inputs\[0\] must be"),
    "a misplaced parameter": ({"inputs": TEXT, "threshold": 0.5}, "a request can't hold 'threshold'"),
    "an address": ({"inputs": "https://example.com/a.png"}, "is an address: nothing is fetched"),
    "an address of a file": ({"inputs": ["file:///etc/passwd"]}, r"inputs\[0\] is an address"),
    "a path": ({"inputs": "/etc/hostname"}, "inputs"),
    "broken base64": ({"inputs": TEXT[:-3] + "~=="}, "not base64"),
    "a byte less": ({"inputs": TEXT.rstrip("=")[:-1]}, "inputs"),
    "another prefix": ({"inputs": f"data:image/png,{TEXT}"}, "must be base64 text, or begin with data:"),
    "text": ({"inputs": text_of(b"no image at all")}, "no image of the formats BMP, GIF"),
    "half of a PNG": ({"inputs": [TEXT, PNG[: len(PNG) // 2]]}, r"inputs\[1\] can't be read as an image: .*trunc"),
    "half of a JPEG": ({"inputs": file_of(FRAME, "JPEG")[:900]}, "can't be read as an image: .*truncated"),
    "EPS": ({"inputs": file_of(FRAME, "EPS")}, "no image of the formats"),
    "a bomb": ({"inputs": bomb()}, "can't be read as an image: .*(exceeds limit|more than 25000000)"),
    "a large image": ({"inputs": file_of(Image.new("1", (5001, 5000)))}, "5001 x 5000 pixels are more than 25000000"),
    "parameters of a list": ({"inputs": TEXT, "parameters": [1]}, "parameters must map"),
    "an unknown parameter": ({"inputs": TEXT, "parameters": {"treshold": 1}}, "can't hold 'treshold'; it may hold t"),
    "a threshold of 2": ({"inputs": TEXT, "parameters": {"threshold": 2}}, r"threshold must be a number in 0\.\.1"),
    "no number": ({"inputs": TEXT, "parameters": {"threshold": "nan"}}, r"threshold must be a number in 0\.\.1"),
    "a truth value": ({"inputs": TEXT, "parameters": {"threshold": True}}, r"must be a number in 0\.\.1, got True"),
    "a mask threshold of 2": ({"inputs": TEXT, "parameters": {"mask_threshold": 2}}, r"a number in 0\.\.1, got 2"),
    "a subtask": ({"inputs": TEXT, "parameters": {"subtask": "semantic"}}, "subtask must be 'instance'"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_bad_request_is_one_clear_error_and_the_next_is_answered(case, ask, expected):
    data, message = BAD[case]
    error = ask(data)
    assert error.startswith("ValueError: ") and len(error) < 300 and "\n" not in error
    with pytest.raises(ValueError, match=message):
        raise ValueError(error)
    assert np.array_equal(union(ask({"inputs": TEXT})), expected())


def test_of_several_classes_the_labels_are_named_and_a_mask_threshold_is_refused(three_class_checkpoint, tmp_path):
    build(three_class_checkpoint, tmp_path / "built")
    for ask in endpoint(tmp_path / "built", tmp_path):
        assert {entry["label"] for entry in ask({"inputs": TEXT})} == {"polyp", "boundary"}
        assert "mask_threshold is for two classes" in ask({"inputs": TEXT, "parameters": {"mask_threshold": 0.5}})


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_is_read(kind):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert decode(file_of(FRAME, kind), "inputs").size == (96, 70)


@pytest.mark.parametrize("exif", [None, b"Exif\0\0MM\0*\0\0\0\x08\0\x05" + b"\xff" * 9])
def test_a_rotated_photograph_is_upright_and_damaged_exif_is_none(exif, ask):
    rotation = Image.Exif()
    rotation[0x0112] = 6
    entries = ask({"inputs": file_of(FRAME, "JPEG", exif=exif or rotation)})
    assert union(entries).shape == ((70, 96) if exif else (96, 70))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_repository_in_half_precision_answers(dtype, checkpoint, expected, tmp_path):
    model = UNetForSemanticSegmentation.from_pretrained(checkpoint).to(getattr(torch, dtype))
    model.save_pretrained(tmp_path)
    UNetImageProcessor.from_pretrained(checkpoint).save_pretrained(tmp_path)
    handler = EndpointHandler.__new__(EndpointHandler)
    handler.processor = UNetImageProcessor.from_pretrained(tmp_path)
    handler.model = UNetForSemanticSegmentation.from_pretrained(tmp_path, dtype=dtype).eval()
    assert handler.model.dtype == getattr(torch, dtype)
    assert (union(handler({"inputs": TEXT})) == expected()).mean() > 0.97


def test_a_pil_image_whose_file_ends_early_is_refused():
    lazy = Image.open(BytesIO(PNG[: len(PNG) // 2]))
    with pytest.raises(ValueError, match="inputs can't be read as an image"):
        decode(lazy, "inputs")


def test_a_pil_image_of_an_eps_file_is_not_run(monkeypatch):
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", None)
    with pytest.raises(ValueError, match="inputs is no image of the formats"):
        decode(Image.open(BytesIO(file_of(FRAME, "EPS"))), "inputs")


def test_a_mask_is_a_png_of_0_and_255():
    png = Image.open(BytesIO(base64.b64decode(MaskPng(1, 3)(np.array([[True, False, True]])))))
    assert (png.format, png.mode, np.asarray(png).tolist()) == ("PNG", "L", [[255, 0, 255]])


@pytest.mark.parametrize(("height", "width"), [(1, 1), (37, 53), (700, 90)])
def test_rows_and_black_rows_around_them_give_the_full_mask(height, width):
    encode, random = MaskPng(height, width), np.random.default_rng(0)
    for _ in range(20):
        top = int(random.integers(height))
        rows = random.random((int(random.integers(1, height - top + 1)), width)) < 0.3
        full_mask = np.zeros((height, width), bool)
        full_mask[top : top + len(rows)] = rows
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            mask = np.asarray(Image.open(BytesIO(base64.b64decode(encode(rows, top)))))
        assert np.array_equal(mask, full_mask * np.uint8(255))


def test_the_cost_of_a_region_follows_its_rows():
    encode, rows = MaskPng(5000, 5000), np.eye(20, 5000, dtype=bool)
    encode(rows, 2400)  # the black rows
    start = time.process_time()
    for number in range(100):
        encode(rows, 48 * number)
    assert time.process_time() - start < 2  # seconds; 15 with a PNG of all rows for each
