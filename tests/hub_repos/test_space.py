"""The Space's page: in Chromium, with app.py in a process that does not know this project, and its functions here."""

import ast
import contextlib
import os
import re
import runpy
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import gradio
import numpy as np
import pytest
import torch
import yaml
from packaging.requirements import Requirement
from PIL import EpsImagePlugin, Image

from hub_unets.hub_repos.publish.space import FILES, stage_space
from hub_unets.hub_repos.repository.builder import build
from hub_unets.modeling.image_processing_unet import UNetImageProcessor
from hub_unets.training.data.phantoms import phantom, phantom_dataset
from tests.hub_repos.chromium import chromium, console_errors, contacted_hosts, wait
from tests.variants import model_class

PROCESS = Path(__file__).with_name("space_process.py")
PIXELS = """const image = arguments[0];
await image.decode();
const canvas = new OffscreenCanvas(image.naturalWidth, image.naturalHeight), context = canvas.getContext("2d");
context.drawImage(image, 0, 0);
const pixels = context.getImageData(0, 0, canvas.width, canvas.height).data;
return [canvas.height, canvas.width, Array.from(pixels)];"""

ENTER = """const field = document.querySelector("#threshold input[type=number]");
field.value = arguments[0];
field.dispatchEvent(new Event("input", { bubbles: true }));"""
MASK = "document.querySelector('#mask img')?.src"


class App:
    """app.py on a built repository."""

    def __init__(self, checkpoint, folder):
        build(checkpoint, folder / "repository")
        stage_space(folder / "space", "someone/unet", "COMMIT")
        with socket.socket() as free_socket:
            free_socket.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{free_socket.getsockname()[1]}"
        keep = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
        self.printed = folder / "printed.txt"
        with self.printed.open("w") as printed:
            self.process = subprocess.Popen(
                [sys.executable, "-I", PROCESS, folder / "space" / "app.py"],
                cwd=folder,
                env=keep
                | {
                    "HOME": str(folder),
                    "TMPDIR": str(folder),
                    "HF_HUB_OFFLINE": "1",
                    "MODEL": str(folder / "repository"),
                    "GRADIO_SERVER_PORT": self.address.split(":")[1],
                    "OMP_NUM_THREADS": "1",
                },
                stdout=printed,
                stderr=printed,
            )

    def answers(self):
        assert self.process.poll() is None, self.printed.read_text()[-3000:]
        with contextlib.suppress(OSError), urllib.request.urlopen(f"http://{self.address}/config", timeout=5):
            return True

    @property
    def runs(self):
        """How often its network has run."""
        return self.printed.read_text().splitlines().count("network")


@pytest.fixture(scope="module")
def gates_checkpoint(make_checkpoint):
    return make_checkpoint("attention_unet")


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("chromium")) as driver:
        yield driver


@pytest.fixture(scope="module")
def app(driver, gates_checkpoint, tmp_path_factory):
    app = App(gates_checkpoint, tmp_path_factory.mktemp("app"))
    yield app
    app.process.kill()
    app.process.wait()


class Page:
    """What a visitor does and sees."""

    def __init__(self, driver, app):
        self.driver, self.app = driver, app
        wait(app.answers, seconds=300)
        console_errors(driver), contacted_hosts(driver)
        driver.get(f"http://{app.address}")
        wait(lambda: self.find("#upload input[type=file]") and self.text.startswith("Upload or paste"))

    def find(self, selector):
        return self.driver.find_elements("css selector", selector)

    def ask(self, script):
        """The page's answer to one script: an element found earlier may be replaced before it is read."""
        return self.driver.execute_script(f"return {script}")

    @property
    def text(self):
        return self.ask("[...document.querySelectorAll('#polyps')].map((one) => one.innerText).join(' ').trim()")

    def upload(self, path, answer=""):
        """Choose a file, and wait until the page shows this message, or lists polyps; meanwhile it shows the time."""
        for button in self.find("#upload button[aria-label='Clear']"):
            button.click()
            wait(lambda: self.text.startswith("Upload or paste") and not self.rows())
        (chooser,) = wait(lambda: self.find("#upload input[type=file]"))
        chooser.send_keys(str(path))
        wait(lambda: self.text.startswith(answer) if answer else self.rows())

    def rows(self):
        """The cells of each polyp's row, as text."""
        cells = "[...row.cells].map((cell) => cell.innerText.trim())"
        return self.ask(f"[...document.querySelectorAll('#polyps tr')].slice(1).map((row) => {cells})")

    def wait_for_rows(self, rows):
        """Wait until the table has these rows; fails with the rows it has instead."""
        with contextlib.suppress(AssertionError):
            wait(lambda: self.rows() == rows, seconds=60)
        assert self.rows() == rows

    def pixels(self, selector, number=0):
        """What a picture shows, H x W x 3."""
        image = wait(lambda: self.find(selector)[number:])[0]
        height, width, pixels = self.driver.execute_script(PIXELS, image)
        return np.array(pixels, np.uint8).reshape(height, width, 4)[..., :3]

    def set_threshold(self, value):
        old_mask = self.ask(MASK)
        self.driver.execute_script(ENTER, value)  # at once: between two keys the page may put its own number there
        wait(lambda: self.ask(MASK) not in (None, old_mask))


@pytest.fixture
def upload(tmp_path):
    """A generated frame as a file."""
    path = tmp_path / "frame.png"
    Image.fromarray(phantom(3, 0, 64)[0]).save(path)
    return path


def expected(checkpoint, variant, path):
    """The processor, and the output of the checkpoint's network for an image."""
    processor = UNetImageProcessor.from_pretrained(checkpoint)
    with torch.inference_mode():
        outputs = model_class(variant).from_pretrained(checkpoint).eval()(**processor(path), output_attentions=True)
    return processor, outputs


def expected_rows(processor, outputs, size, threshold=None, labels=("background", "polyp")):
    result = processor.post_process_instance_segmentation(outputs, mask_threshold=threshold, target_sizes=[size])[0]
    areas = [int((result["segmentation"] == segment["id"]).sum()) for segment in result["segments_info"]]
    return [
        [
            str(segment["id"]),
            labels[segment["label_id"]],
            f"{segment['score']:.3f}",
            f"{area:,}",
            f"{100 * area / np.prod(size):.2f}",
        ]
        for segment, area in zip(result["segments_info"], areas, strict=True)
    ]


def test_an_upload_shows_the_processors_mask_and_its_polyps(app, gates_checkpoint, driver, upload):
    page = Page(driver, app)
    page.upload(upload)
    image = np.asarray(Image.open(upload))
    size = image.shape[:2]
    processor, outputs = expected(gates_checkpoint, "attention_unet", upload)
    mask = processor.post_process_semantic_segmentation(outputs, [size])[0].numpy()
    assert 0 < mask.mean() < 1
    assert np.array_equal(page.pixels("#mask img"), np.repeat(mask[..., None] * 255, 3, axis=-1))
    shown_image, outlined = (page.pixels("#before-after img", number) for number in (0, 1))
    assert np.array_equal(shown_image, image)
    assert np.array_equal((outlined != shown_image).any(axis=-1), mask == 1)
    page.wait_for_rows(expected_rows(processor, outputs, size))

    ran, threshold = app.runs, round(float(outputs.logits.sigmoid().quantile(0.75)), 2)
    page.set_threshold(threshold)
    moved_mask = processor.post_process_semantic_segmentation(outputs, [size], threshold)[0].numpy()
    assert 0 < moved_mask.sum() < mask.sum()
    assert np.array_equal(page.pixels("#mask img")[..., 0], moved_mask * 255)
    page.wait_for_rows(expected_rows(processor, outputs, size, threshold))
    assert app.runs == ran

    captions = [caption.text for caption in wait(lambda: page.find("#gates .caption-label"))]
    assert len(captions) == 3 and captions == [
        f"gate {number}: {attention.shape[2]} x {attention.shape[3]}, {attention.min():.2f} to {attention.max():.2f}"
        for number, attention in enumerate(outputs.attentions, start=1)
    ]
    assert [page.pixels("#gates .grid-container img", number).shape[:2] for number in range(3)] == [size] * 3
    assert console_errors(driver) == []
    assert contacted_hosts(driver) == {app.address} and "reached for" not in app.printed.read_text()
    assert "not a medical device" in driver.find_element("tag name", "body").text


def test_broken_files_have_a_message_and_leave_no_old_mask(app, driver, upload, tmp_path):
    page = Page(driver, app)
    page.upload(upload)
    assert page.rows()
    (tmp_path / "truncated.png").write_bytes(upload.read_bytes()[:1500])
    (tmp_path / "text.png").write_text("no image")
    for name, message in (
        ("truncated", "No mask, this file can't be used: "),
        ("text", "No mask: this file is not an image that can be read."),
    ):
        page.upload(tmp_path / f"{name}.png", message)
        wait(lambda: not page.find("#before-after img, #mask img"))


@pytest.fixture
def space_of(tmp_path, monkeypatch, modules_cache):
    """A function (checkpoint) -> what app.py defines, in this process, on the checkpoint's repository."""

    def load(checkpoint):
        build(checkpoint, tmp_path / "repository")
        monkeypatch.setenv("MODEL", str(tmp_path / "repository"))
        monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
        monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "True")  # which app.py changes
        return runpy.run_path(str(FILES / "app.py"), run_name="space")

    return load


def test_several_classes_have_no_threshold_and_no_gates(space_of, three_class_checkpoint, upload):
    space = space_of(three_class_checkpoint)
    assert not space["threshold"].visible and not space["gates"].visible
    _, (shown_image, outlined), grey, table, maps = space["segment"](str(upload), 0.5)
    image = np.asarray(Image.open(upload))
    size = image.shape[:2]
    processor, outputs = expected(three_class_checkpoint, "unet", upload)
    mask = processor.post_process_semantic_segmentation(outputs, [size])[0].numpy()
    assert set(np.unique(mask)) == {0, 1, 2} and np.array_equal(grey, mask * 127)
    assert np.array_equal(shown_image, image) and np.array_equal((outlined != shown_image).any(axis=-1), mask > 0)
    cells = [re.findall("<td>(.*?)</td>", row) for row in table.split("<tr>")[2:]]
    shown_rows = [[re.sub("<.*?>", "", cell) for cell in row] for row in cells]
    assert shown_rows == expected_rows(processor, outputs, size, labels=("background", "polyp", "boundary"))
    assert maps == []


def test_a_session_keeps_no_pixels_and_its_image_may_be_gone(space_of, checkpoint, upload):
    space = space_of(checkpoint)
    session, (shown_image, outlined), grey, table, _ = space["segment"](str(upload), 0.5)
    path, logits = session
    assert path == str(upload) and logits.shape == (1, 1, 64, 64)
    other_pair, other_grey, other_table = space["show"](session, 0.5)
    assert np.array_equal(other_pair[1], outlined) and np.array_equal(grey, other_grey) and table == other_table
    upload.unlink()
    assert space["show"](session, 0.5)[:2] == (None, None) and "upload it again" in space["show"](session, 0.5)[2]


def test_odd_files_are_shown_as_the_processor_sees_them(space_of, checkpoint, upload, tmp_path, monkeypatch):
    segment = space_of(checkpoint)["segment"]
    frame = Image.open(upload)
    grey = frame.convert("L")
    for image, expected_image in (
        (grey, grey),
        (frame.convert("RGBA"), frame),
        (Image.fromarray(np.asarray(grey).astype(np.uint16) * 257), grey),
        (frame.resize((1, 1)), frame.resize((1, 1))),
    ):
        image.save(tmp_path / "odd.png")
        _, (shown_image, _), mask, table, _ = segment(str(tmp_path / "odd.png"), 0.5)
        assert (
            np.array_equal(shown_image, np.asarray(expected_image.convert("RGB")))
            and mask.shape == shown_image.shape[:2]
        )
        assert "No mask" not in table
    Image.new("1", (6000, 6000)).save(tmp_path / "<huge>.png")
    *outputs, message, _ = segment(str(tmp_path / "<huge>.png"), 0.5)
    assert outputs == [None] * 3 and "6000 x 6000 pixels are more than 25,000,000: make it smaller" in message
    grey.save(tmp_path / "program.png", "EPS")
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", None)  # which nothing may call
    assert "this file can't be used: cannot identify" in segment(str(tmp_path / "program.png"), 0.5)[3]


def test_on_zerogpu_one_function_gets_the_gpu_and_none_runs_before_a_visitor_comes(
    space_of, checkpoint, upload, monkeypatch
):
    lent = []

    def gpu(duration):
        def decorate(function):
            def call(*arguments):
                lent.append(function.__name__)
                return function(*arguments)

            lent.append(f"decorated {function.__name__}, {duration} s")
            return call

        return decorate

    monkeypatch.setitem(sys.modules, "spaces", SimpleNamespace(GPU=gpu))
    space = space_of(checkpoint)
    assert lent == ["decorated run, 20 s"]
    (_, logits), *_ = space["segment"](str(upload), 0.5)
    assert lent[1:] == ["run"] and logits.device.type == "cpu"
    assert torch.equal(logits, expected(checkpoint, "unet", upload)[1].logits)


def test_zerogpu_lists_the_python_and_the_torch_of_the_space():
    _, header, _ = (FILES / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    assert yaml.safe_load(header)["python_version"] in ("3.12.12", "3.10.13")  # hub-docs, spaces-zerogpu, August 2026
    needed = {one.name: one for one in map(Requirement, (FILES / "requirements.txt").read_text().split())}
    assert all(needed["torch"].specifier.contains(number) for number in ("2.8.0", "2.9.1", "2.10.0", "2.11.0"))
    assert not needed["torch"].specifier.contains("2.12.0") and "spaces" in needed
    imported = {
        (node.module if isinstance(node, ast.ImportFrom) else node.names[0].name).split(".")[0]
        for node in ast.walk(ast.parse((FILES / "app.py").read_text(encoding="utf-8")))
        if isinstance(node, (ast.Import, ast.ImportFrom))
    }
    packages = {"PIL": "pillow", "gradio": "gradio"}  # the Hub installs Gradio by itself
    assert {packages.get(name, name) for name in imported - set(sys.stdlib_module_names)} <= {*needed, "gradio"}


def test_the_examples_are_generated_frames():
    rows = phantom_dataset(6, 7, 320)
    examples = sorted(FILES.glob("example_*"))
    assert [path.read_bytes() for path in examples] == [rows[index]["image"]["bytes"] for index in (1, 3, 5)]


def test_the_space_runs_the_gradio_that_is_tested_here():
    _, header, _ = (FILES / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    settings = yaml.safe_load(header)
    assert settings["sdk"] == "gradio" and settings["sdk_version"] == gradio.__version__
    assert (FILES / settings["app_file"]).is_file() and len(settings["short_description"]) <= 60
