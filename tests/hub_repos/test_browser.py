"""The page: its files, and in a real browser the processor's pixels, masks and polyps."""

import json
import shutil
import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from hub_unets.hub_repos.browser import main
from hub_unets.hub_repos.page import page as pages
from hub_unets.hub_repos.page.page import PACKAGE, RUNTIME, build_page, fetch_runtime
from hub_unets.modeling.image_processing_unet import UNetImageProcessor
from hub_unets.modeling.variants import find_variant
from hub_unets.training.data.phantoms import phantom
from tests.hub_repos.chromium import chromium, console_errors, served, wait
from tests.variants import small_model

FILES = {"index.html", "page.css", "page.js", "settings.json", "model.onnx", "example.png", *RUNTIME.values()}


@pytest.fixture(scope="session")
def runtime(tmp_path_factory):
    """onnxruntime-web, fetched once."""
    try:
        return fetch_runtime(tmp_path_factory.mktemp("npm"))
    except ValueError as error:
        pytest.skip(str(error))


@pytest.fixture
def hollow_runtime(tmp_path):
    """A folder that looks like onnxruntime-web."""
    dist = tmp_path / "package" / "dist"
    dist.mkdir(parents=True)
    for name in RUNTIME:
        (dist / name).write_text(name)
    return dist.parent


class Page:
    """A page in a browser.

    Attributes:
        driver: selenium's.
        folder: where its downloads go.
        model, processor: what the page must agree with.
    """

    def __init__(self, driver, folder, address, repository):
        self.driver, self.downloads, self.address = driver, folder / "downloads", address
        model_type = json.loads((repository / "config.json").read_text())["model_type"]
        self.model = find_variant(model_type)[1].from_pretrained(repository).eval()
        self.processor = UNetImageProcessor.from_pretrained(repository)
        self.open()

    def open(self):
        self.driver.get(self.address)
        self.wait_for("Ready")

    def find(self, name):
        return self.driver.find_element("id", name)

    def wait_for(self, beginning):
        """Wait until the status line begins with this; return it."""
        deadline = time.monotonic() + 120
        while not (text := self.find("status").text).startswith(beginning):
            assert time.monotonic() < deadline, f"{text!r} instead of {beginning!r}"
            time.sleep(0.05)
        return text

    def show(self, path):
        self.find("file").send_keys(str(path))
        self.wait_for(f"Done: {path.name}")

    def mask(self, name):
        """The mask as it is downloaded, grey levels H x W."""
        shutil.rmtree(self.downloads, ignore_errors=True)
        self.find("download").click()
        path = self.downloads / f"{name}_mask.png"
        wait(path.exists, seconds=60)
        return np.asarray(Image.open(path).convert("L"))

    def rows(self):
        """(class, pixels, score) of each line of the list."""
        rows = self.driver.execute_script(
            "return [...document.querySelectorAll('#regions tr')].map((r) => [...r.cells].map((d) => d.innerText))"
        )
        return [(name, int(area), float(score)) for _, name, area, _, score in rows]

    def expected(self, path, threshold=None):
        """The processor's mask and its rows, of a file."""
        with torch.inference_mode():
            logits = self.model(**self.processor(path)).logits
        with Image.open(path) as image:
            size = image.size[::-1] if image.getexif().get(0x0112, 1) < 5 else image.size
        mask = self.processor.post_process_semantic_segmentation(logits, [size], threshold)[0].numpy()
        result = self.processor.post_process_instance_segmentation(logits, None, threshold, target_sizes=[size])[0]
        areas = np.bincount(result["segmentation"].numpy().ravel())
        names = self.model.config.id2label
        return mask, [
            (names[segment["label_id"]], areas[segment["id"]], round(segment["score"], 3))
            for segment in result["segments_info"]
        ]

    def check(self, path, threshold=None):
        """Mask and list are the processor's; returns the mask."""
        mask, rows = self.expected(path, threshold)
        levels = self.mask(path.stem)
        assert levels.shape == mask.shape
        classes = levels if self.model.config.num_logits > 1 else levels // 255
        for label in range(1, self.model.config.num_labels):
            assert dice(classes == label, mask == label) > 0.999, label
        page_rows = self.rows()
        assert [row[0] for row in page_rows] == [row[0] for row in rows][:200]
        for page_row, row in zip(page_rows, rows, strict=False):
            assert page_row[1:] == pytest.approx(row[1:], abs=2e-3)
        return mask

    def calls(self, call, *arguments):
        """What a function of page.js gives."""
        script = "import('./page.js').then((m) => { const [a, done] = [arguments[0], arguments[1]]; done(%s); })"
        return self.driver.execute_async_script(script % call, arguments)


def dice(mask, reference):
    return 2 * (mask & reference).sum() / max(1, mask.sum() + reference.sum())


@pytest.fixture(scope="module")
def open_page(runtime, tmp_path_factory):
    """A function (repository, options of build_page) -> Page; none has logged anything or contacted other servers."""
    folder = tmp_path_factory.mktemp("chromium")
    with chromium(folder) as driver, served(folder) as address:

        def open_it(repository, **options):
            name = f"page-{len(list(folder.iterdir()))}"
            build_page(repository, folder / name, runtime, **options)
            return Page(driver, folder, f"{address}{name}/", repository)

        yield open_it
        check_quiet(driver, address)


def check_quiet(driver, address):
    """No page has logged an error since the last check, or contacted any other server."""
    assert console_errors(driver) == []
    messages = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    urls = [
        message["params"]["request"]["url"] for message in messages if message["method"] == "Network.requestWillBeSent"
    ]
    assert any(url.endswith("model.onnx") for url in urls)
    page_urls = [url for url in urls if not url.startswith(("chrome:", "data:"))]  # the browser's own start page
    assert [url for url in page_urls if not url.startswith((address, f"blob:{address}"))] == []


@pytest.fixture(scope="module")
def first_page(open_page, repository):
    return open_page(repository)


@pytest.fixture
def page(first_page):
    if first_page.driver.current_url != first_page.address:
        first_page.open()
    return first_page


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    """A JPEG that is wider than high."""
    path = tmp_path_factory.mktemp("picture") / "frame.jpg"
    Image.fromarray(phantom(3, 1, 150)[0]).resize((210, 150)).save(path, quality=90)
    return path


def test_the_page_marks_what_the_processor_marks(page, picture):
    page.show(picture)
    mask = page.check(picture)
    assert 0 < mask.mean() < 1
    assert f"{mask.sum()} pixels, {100 * mask.mean():.2f} % of the image" in page.find("summary").text


def test_the_slider_is_the_processors_threshold_and_takes_keys(page, picture):
    page.show(picture)
    default_mask = page.check(picture)
    page.find("threshold").send_keys("\ue012" * 4)  # the left arrow
    wait(lambda: page.find("threshold-value").text == "0.46")
    assert (page.check(picture, threshold=0.46) != default_mask).any()
    page.find("threshold").send_keys("\ue014" * 4)
    wait(lambda: page.find("threshold-value").text == "0.5")
    page.check(picture)


@pytest.mark.parametrize("kind", ["turned.jpg", "grey.png", "palette.png", "transparent.png"])
def test_any_kind_of_image_is_read_as_the_processor_reads_it(kind, page, picture, tmp_path):
    image, path = Image.open(picture), tmp_path / kind
    if kind == "turned.jpg":
        exif = Image.Exif()
        exif[0x0112] = 6
        image.save(path, exif=exif, quality=95)
    elif kind == "transparent.png":
        clear = np.zeros((image.height, image.width), np.uint8)
        clear[: image.height // 2] = 255
        image.putalpha(Image.fromarray(clear))
        image.save(path)
    else:
        image.convert({"grey.png": "L", "palette.png": "P"}[kind]).save(path)
    page.show(path)
    page.check(path)


def test_a_bad_file_is_refused_in_words_and_the_next_one_works(page, picture, tmp_path):
    bad_file = tmp_path / "notes.png"
    bad_file.write_text("no picture")
    page.find("file").send_keys(str(bad_file))
    assert page.wait_for("notes.png is no image") and page.find("status").get_attribute("class") == "error"
    page.show(picture)


@pytest.mark.parametrize(
    "event", ["new ClipboardEvent('paste', { clipboardData: t })", "new DragEvent('drop', { dataTransfer: t })"]
)
def test_an_image_can_be_dropped_and_pasted(event, page):
    page.driver.execute_async_script(
        "const done = arguments[0]; fetch('example.png').then((r) => r.blob()).then((blob) => {"
        "const t = new DataTransfer(); t.items.add(new File([blob], 'mine.png'));"
        f"document.dispatchEvent({event}); done(); }});"
    )
    page.wait_for("Done: mine.png")
    page.driver.execute_script(f"const t = new DataTransfer(); document.dispatchEvent({event});")
    page.wait_for("That holds no image file")


def test_the_example_button_shows_the_example(page):
    page.find("example").click()
    page.wait_for("Done: example.png, 344 x 262 pixels")


@pytest.mark.parametrize("resample", [0, 2, 3])
@pytest.mark.parametrize("size", [(20, 17), (64, 80), (53, 37)])
def test_resizing_is_pils(resample, size, page):
    pixels = np.random.default_rng(0).integers(0, 256, (37, 53, 3), np.uint8)
    expected = Image.fromarray(pixels).resize(size, Image.Resampling(resample))
    rgba = np.dstack([pixels, np.full((37, 53), 255, np.uint8)]).ravel().tolist()
    resized = page.calls(
        "Array.from(m.resize({ data: a[0], width: 53, height: 37 }, a[1], a[2], a[3]))", rgba, *size, resample
    )
    assert resized == np.asarray(expected).ravel().tolist()


def test_pixel_values_are_the_processors_to_the_bit(page):
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
    processor = UNetImageProcessor(size={"height": 20, "width": 24}, mirror_margin=9)
    settings = {"width": 24, "height": 20, "margin": 9, "resample": 2, "rescale_factor": processor.rescale_factor}
    settings |= {"mean": processor.image_mean, "std": processor.image_std}
    rgba = np.dstack([pixels, np.zeros((30, 40), np.uint8)]).ravel().tolist()
    pixel_values = page.calls(
        "[m.pixelValues({ data: a[0], width: 40, height: 30 }, a[1])].map((p) => [p.dims, Array.from(p.data)])[0]",
        rgba, settings,
    )  # fmt: skip
    expected = processor(pixels, return_tensors="np")["pixel_values"]
    assert pixel_values[0] == list(expected.shape)
    assert np.array_equal(np.array(pixel_values[1], np.float32), expected.ravel())


def test_logits_are_interpolated_as_torch_does(page):
    logits = torch.randn(1, 2, 6, 9)
    for size in ((25, 14), (6, 9), (4, 5)):
        values = page.calls("Array.from(m.upsample(a[0], [2, 6, 9], a[1], a[2]))", logits.ravel().tolist(), *size)
        expected = F.interpolate(logits, size, mode="bilinear").ravel().numpy()
        np.testing.assert_allclose(values, expected, atol=1e-6)


def test_regions_touch_at_corners_and_edges_of_the_image_do_not_join(page):
    mask = [1, 0, 0, 2, 0, 1, 0, 1, 1, 0, 0, 1]  # 3 x 4
    regions = page.calls("m.regions(Uint8Array.from(a[0]), 4, new Float32Array(36), 3)", mask)
    areas = [(region["label"], region["area"], region["x"], region["y"]) for region in regions]
    assert areas == [(1, 3, pytest.approx(1 / 3), 1), (1, 2, 3, 1.5), (2, 1, 3, 0)]
    assert regions[0]["score"] == pytest.approx(1 / 3)


def test_several_classes_are_marked_and_have_no_threshold(open_page, three_class_checkpoint, picture):
    page = open_page(three_class_checkpoint)
    page.show(picture)
    assert set(np.unique(page.check(picture))) == {0, 1, 2}
    assert not page.find("threshold").is_displayed()


def test_unlikely_regions_are_left_out_of_mask_and_list(open_page, repository, picture, tmp_path):
    folder = tmp_path / "repository"
    shutil.copytree(repository, folder)
    page = open_page(repository)
    scores = sorted(row[2] for row in page.expected(picture)[1])
    middle = len(scores) // 2
    page.processor.score_threshold = (scores[middle - 1] + scores[middle]) / 2 + 1e-4
    page.processor.save_pretrained(folder)
    page = open_page(folder)
    page.show(picture)
    page.check(picture)
    assert 0 < len(page.rows()) < len(scores)


def test_unpadded_convolutions_get_their_mirrored_borders(open_page, picture, tmp_path):
    model, processor = small_model(padding="valid", depth=2).eval(), UNetImageProcessor(size=24, mirror_margin=20)
    with torch.no_grad():
        model.head.classifier.bias -= model(**processor(picture)).logits.median()
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    page = open_page(tmp_path)
    page.show(picture)
    assert 0 < page.check(picture).mean() < 1


def test_a_page_that_can_not_start_says_why(page, tmp_path):
    check_quiet(page.driver, page.address.rsplit("/", 2)[0])
    folder = shutil.copytree(pages.TEMPLATES, tmp_path / "page")
    for source, target in pages.FILES.items():
        (folder / source).rename(folder / target)
    (folder / "onnxruntime.js").write_text("export const env = {};")
    with served(folder) as address:
        page.driver.get(address)
        page.wait_for("The server has no settings.json (status 404).")
    page.driver.get_log("browser")  # the missing file is an error there
    page.driver.get_log("performance")
    page.open()


def test_a_page_holds_just_its_files_and_replaces_an_earlier_one(repository, hollow_runtime, tmp_path, capsys):
    for _ in range(2):
        main([str(repository), str(tmp_path / "page"), "--runtime", str(hollow_runtime)])
        assert {path.name for path in (tmp_path / "page").iterdir()} == FILES
        (tmp_path / "page" / "settings.json").write_text("{}")
    assert "http.server --bind 127.0.0.1" in capsys.readouterr().out
    build_page(repository, tmp_path / "page", hollow_runtime)
    settings = json.loads((tmp_path / "page" / "settings.json").read_text())
    assert settings == {
        "name": "unet-test", "width": 64, "height": 64, "margin": 0, "resample": 2, "rescale_factor": 1 / 255,
        "mean": [0.5] * 3, "std": [0.25] * 3, "mask_threshold": 0.5, "score_threshold": 0.0,
        "labels": ["background", "polyp"],
        "runtime": PACKAGE,
    }  # fmt: skip


def test_the_repositorys_own_onnx_is_taken(repository, hollow_runtime, tmp_path):
    folder = shutil.copytree(repository, tmp_path / "repository")
    (folder / "model.onnx").write_bytes(b"mine")
    build_page(folder, tmp_path / "page", hollow_runtime)
    assert (tmp_path / "page" / "model.onnx").read_bytes() == b"mine"


def test_no_file_of_the_page_names_a_host():
    for name in pages.FILES:
        text = (pages.TEMPLATES / name).read_text()
        assert "//" not in text.replace("// ", "") and "http:" not in text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"resample": 1}, r"resample is 1, the page knows 0 \(nearest\), 2 \(bilinear\), 3 \(bicubic\)"),
        ({"do_resize": False}, "do_resize false"),
        ({"drop_outside_view": True}, "drop_outside_view true"),
    ],
)
def test_unsupported_preprocessing_is_refused(changes, message, repository, tmp_path):
    folder = shutil.copytree(repository, tmp_path / "repository")
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(ValueError, match=message):
        build_page(folder, tmp_path / "page")
    assert not (tmp_path / "page").exists()


def test_wrong_arguments_are_refused_in_words(repository, hollow_runtime, tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("precious")
    with pytest.raises(ValueError, match="not empty and not an earlier page"):
        build_page(repository, tmp_path / "mine")
    with pytest.raises(ValueError, match="neither a folder nor a Hub id"):
        build_page("nowhere", tmp_path / "page")
    with pytest.raises(ValueError, match="config.json is missing"):
        build_page(tmp_path / "mine", tmp_path / "page")
    with pytest.raises(ValueError, match=r"is no unpacked onnxruntime-web@\S+: dist/ort.wasm"):
        build_page(repository, tmp_path / "page", tmp_path / "mine")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ValueError, match="npm is not installed"):
        build_page(repository, tmp_path / "page")


def test_the_error_output_of_npm_is_shown(tmp_path, monkeypatch):
    npm = tmp_path / "npm"
    npm.write_text("#!/bin/sh\necho no such registry >&2\nexit 1\n")
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match=f"npm did not fetch {PACKAGE}: no such registry. --runtime takes"):
        fetch_runtime(tmp_path)
