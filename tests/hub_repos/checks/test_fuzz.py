"""Seeded mutations of each file that `verify` reads: they pass and load, or fail with a reason that names a file."""

import hashlib
import json
import random
import re
import shutil
import time

import pytest
from PIL import Image

from hub_unets.hub_repos.checks.onnx_file import compare_onnx
from hub_unets.hub_repos.checks.static import KNOWN_FILES
from hub_unets.hub_repos.checks.verification import verify_folder
from hub_unets.hub_repos.repository.export import load_network, to_onnx
from hub_unets.modeling.image_processing_unet import UNetImageProcessor
from hub_unets.modeling.modeling_unet import UNetForSemanticSegmentation
from hub_unets.training.errors import UserError
from hub_unets.training.measure.weights import load_weights

JSON = ("config.json", "preprocessor_config.json", "results.json", "manifest.json")
OTHERS = ("model.safetensors", "per_image.csv", "README.md", "example.png")
QUICK, MANY = 13, 1250  # mutations of a file
SECONDS = 20  # of the processor, for one repository
BARE = re.compile(r"(^|: )\w+(Error|Exception|Warning|Iteration)\b")  # the bare class of an error, without words
ODD = (
    None, True, -1, 0, 1, 2**40, 10**30, 1e308, -0.5, "", "x", "a" * 20_000, "None", "../../x", "{", "\ud800", "\0",
    "```\n", [], {}, [[]], [None] * 3, {"": None}, {"a": {"a": {"a": []}}}, float("nan"), float("inf"),
)  # fmt: skip


def mutated_bytes(content, rng):
    """A bit turned, an end cut off, or a piece put in, doubled, zeroed or moved."""
    content, start, length = bytearray(content), rng.randrange(len(content)), rng.choice((1, 8, 200))
    kind = rng.randrange(6)
    if kind == 0:
        content[start] ^= 1 << rng.randrange(8)
    elif kind == 1:
        del content[start:]
    elif kind == 2:
        content[start:start] = rng.randbytes(length)
    elif kind == 3:
        content[start:start] = content[start : start + length]
    elif kind == 4:
        content[start : start + length] = bytes(len(content[start : start + length]))
    else:
        piece = content[start : start + length]
        del content[start : start + length]
        content[:0] = piece
    return bytes(content)


def mutated_json(content, rng):
    """A value, anywhere, that is taken out, renamed, doubled or replaced by an odd one."""
    value = json.loads(content)
    inner, key = rng.choice(list(places(value)))
    kind = rng.randrange(4)
    if kind == 0:
        del inner[key]
    elif kind == 1 and isinstance(inner, dict):
        inner[rng.choice(("", "x", "é", "__class__", key + "x"))] = inner.pop(key)
    elif kind == 2 and isinstance(inner, list):
        inner.extend(inner[key : key + 1] * rng.choice((1, 1000)))
    else:
        inner[key] = rng.choice(ODD)
    return json.dumps(value).encode()


def places(value):
    """(container, key) of every value in a JSON value."""
    for key in value if isinstance(value, dict) else range(len(value)):
        yield value, key
        if isinstance(value[key], (dict, list)):
            yield from places(value[key])


def mutated_lines(content, rng):
    """A line that is taken out or doubled, or a word of it that is replaced by an odd one."""
    lines = content.decode().split("\n")
    index = rng.randrange(len(lines))
    kind = rng.randrange(4)
    if kind == 0:
        del lines[index]
    elif kind == 1:
        lines[index:index] = lines[index : index + 1] * rng.choice((1, 1000))
    else:
        words = re.split(r"([, |])", lines[index])
        words[rng.randrange(len(words))] = str(rng.choice(ODD))
        lines[index] = "".join(words)
    return "\n".join(lines).encode("utf-8", errors="surrogatepass")


def mutated_header(content, rng):
    """A mutation of the JSON before the tensors, with the right length."""
    length = int.from_bytes(content[:8], "little")
    header = mutated_json(content[8 : 8 + length], rng)
    return len(header).to_bytes(8, "little") + header + content[8 + length :]


OF_STRUCTURE = dict.fromkeys(JSON, mutated_json) | {
    "per_image.csv": mutated_lines,
    "README.md": mutated_lines,
    "model.safetensors": mutated_header,
}


def mutation(name, content, seed):
    """The mutation of a file's content that a seed gives: mostly of its structure, else of its bytes."""
    rng = random.Random(f"{name} {seed}")
    mutate = OF_STRUCTURE.get(name, mutated_bytes) if rng.random() < 0.7 else mutated_bytes
    return mutate(content, rng)


def sign(folder, name):
    """Update the manifest, as anyone who changes a file can."""
    manifest, content = json.loads((folder / "manifest.json").read_text()), (folder / name).read_bytes()
    manifest["files"][name] = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def require_clear(reasons, case):
    """Each reason names a file in words."""
    for reason in reasons:
        assert any(name in reason for name in (*KNOWN_FILES, ".py")), f"{case}: {reason}"
        assert not BARE.search(reason), f"{case}: {reason}"
        assert len(reason) <= 1000, case


@pytest.mark.parametrize("name", [*JSON, *OTHERS])
@pytest.mark.parametrize("seeds", [range(QUICK), pytest.param(range(QUICK, MANY), marks=pytest.mark.slow)], ids=len)
def test_a_mutated_file_passes_and_loads_or_is_named(name, seeds, repository, tmp_path, record_property):
    folder = shutil.copytree(repository, tmp_path / "mutated")
    sound, manifest = ((folder / file_name).read_bytes() for file_name in (name, "manifest.json"))
    failed = 0
    for seed in seeds:
        (folder / "manifest.json").write_bytes(manifest)
        (folder / name).write_bytes(mutation(name, sound, seed))
        if name != "manifest.json":
            sign(folder, name)
        started = time.process_time()
        reasons = [check.reason for check in verify_folder(folder, run=False) if not check.passed]
        assert time.process_time() - started < SECONDS, (name, seed)
        require_clear(reasons, (name, seed))
        failed += bool(reasons)
        if not reasons:
            model, processor = (
                load_weights(UNetForSemanticSegmentation, folder),
                UNetImageProcessor.from_pretrained(folder),
            )
            assert model(**processor(Image.open(folder / "example.png"))).logits.shape[0] == 1, (name, seed)
    assert failed > len(seeds) / 3
    record_property("right", len(seeds) - failed)
    record_property("refused", failed)


@pytest.fixture(scope="module")
def onnx(repository):
    return to_onnx(load_network(repository))


@pytest.mark.parametrize("seeds", [range(QUICK), pytest.param(range(QUICK, MANY), marks=pytest.mark.slow)], ids=len)
def test_a_mutated_onnx_file_is_that_of_the_weights_or_is_refused(seeds, onnx, record_property):
    refused = 0
    for seed in seeds:
        content = mutated_bytes(onnx, random.Random(seed))
        try:
            compare_onnx(content, onnx)
        except UserError as error:
            require_clear([str(error)], ("model.onnx", seed))
            refused += 1
        else:
            compare_onnx(onnx, content)  # it says the same
    record_property("right", len(seeds) - refused)
    record_property("refused", refused)
