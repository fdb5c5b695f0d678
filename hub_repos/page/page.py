"""The page: its files, the numbers of the image processor that it reads, the network as ONNX, the runtime."""

import json
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

from huggingface_hub import snapshot_download
from PIL import Image

from hub_unets.hub_repos.repository.example import EXAMPLE, write_example
from hub_unets.hub_repos.repository.export import ONNX, MissingToolError, export_onnx, require_export
from hub_unets.hub_repos.repository.folders import refuse_foreign_folder, replaced
from hub_unets.hub_repos.repository.int8 import INT8
from hub_unets.modeling.image_processing_unet import UNetImageProcessor
from hub_unets.training.errors import UserError, about_input
from hub_unets.training.measure.models import read_variant

TEMPLATES = Path(__file__).parent
FILES = {"browser.html": "index.html", "browser.css": "page.css", "browser.js": "page.js"}
PACKAGE = "onnxruntime-web@1.30.0"
RUNTIME = {  # names in the package and in the page; .mjs becomes .js, as not every server knows the type of .mjs
    "ort.wasm.bundle.min.mjs": "onnxruntime.js",
    "ort-wasm-simd-threaded.wasm": "ort-wasm-simd-threaded.wasm",
}
SETTINGS = "settings.json"
RESAMPLES = {Image.Resampling.NEAREST, Image.Resampling.BILINEAR, Image.Resampling.BICUBIC}


def build_page(model, out, runtime=None, name=None, int8=False):
    """Write the page of a model.

    Args:
        model: a built repository, or a Hub id; without model.onnx its network is exported.
        out: folder to write: absent, empty, or an earlier page, which is replaced as a whole.
        runtime: an unpacked onnxruntime-web; None fetches one with npm.
        name: what the page calls the model; the default is the run's name, or the Hub id.
        int8: the page runs the model's model_int8.onnx.

    Raises:
        UserError: something is missing, or the page can't do what the image processor does.
    """
    refuse_foreign_folder(Path(out), is_page, "page")
    folder, usual_name = locate(model)
    settings = page_settings(folder, name or usual_name)
    require_parts(folder, runtime, int8)
    with replaced(out, is_page, "page") as staged, tempfile.TemporaryDirectory() as scratch:
        for source, target in FILES.items():
            shutil.copyfile(TEMPLATES / source, staged / target)
        copy_runtime(Path(runtime) if runtime else fetch_runtime(Path(scratch)), staged)
        (staged / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        write_example(staged / EXAMPLE, 3)
        if int8 or (folder / ONNX).is_file():
            shutil.copyfile(folder / (INT8 if int8 else ONNX), staged / ONNX)
        else:
            export_onnx(folder, staged / ONNX)


def is_page(folder):
    """Whether a folder holds a page."""
    return (folder / SETTINGS).is_file() and (folder / "page.js").is_file()


def locate(model):
    """(folder, the model's name on the page) of a folder or a Hub id; no code is fetched."""
    folder = Path(model)
    if folder.is_dir():
        results = folder / "results.json"
        run = json.loads(results.read_text(encoding="utf-8"))["run"] if results.exists() else {}
        return folder, run.get("name", folder.name)
    if str(model).count("/") != 1:
        raise UserError(f"{model} is neither a folder nor a Hub id such as owner/name.")
    names = ["config.json", "preprocessor_config.json", "model.safetensors", ONNX, INT8]
    return Path(snapshot_download(str(model), allow_patterns=names)), str(model)


def require_parts(folder, runtime, int8):
    """Raise UserError, before anything is fetched, where the page's network or its runtime can't be had."""
    if int8 and not (folder / INT8).is_file():
        raise UserError(f"{folder} has no {INT8}: `hub-unets quantise RUN DATA` writes it, and build takes it along.")
    if not (int8 or (folder / ONNX).is_file()):
        require_export()
    if runtime is None:
        find_npm()


def page_settings(folder, name):
    """The settings of page.js: numbers of the image processor, and the labels' names.

    Raises:
        UserError: the page does not support the preprocessing.
    """
    for file in ("config.json", "preprocessor_config.json"):
        if not (folder / file).is_file():
            raise UserError(f"{name} is no built repository: {file} is missing; build one with `hub-unets build`.")
    with about_input():
        config = read_variant(folder)[0].from_pretrained(folder)
    processor = UNetImageProcessor.from_pretrained(folder)
    require_rgb(processor, name)
    if not processor.do_resize:
        raise UserError("the page resizes every image to `size`, and preprocessor_config.json has do_resize false.")
    if processor.drop_outside_view:
        raise UserError("preprocessor_config.json has drop_outside_view true, and the page does not know the view.")
    if processor.resample not in RESAMPLES:
        known = ", ".join(f"{resample.value} ({resample.name.lower()})" for resample in sorted(RESAMPLES))
        raise UserError(f"preprocessor_config.json: resample is {processor.resample}, the page knows {known}.")
    return {
        "name": name,
        "width": processor.size["width"],
        "height": processor.size["height"],
        "margin": processor.mirror_margin,
        "resample": processor.resample,
        "rescale_factor": processor.rescale_factor if processor.do_rescale else 1,
        "mean": processor.image_mean if processor.do_normalize else [0, 0, 0],
        "std": processor.image_std if processor.do_normalize else [1, 1, 1],
        "mask_threshold": processor.mask_threshold,
        "score_threshold": processor.score_threshold,
        "labels": [config.id2label[label] for label in range(config.num_labels)],
        "runtime": PACKAGE,
    }


def require_rgb(processor, name):
    """Raise UserError where a network takes other images than a browser shows."""
    if not processor.takes_rgb:
        raise UserError(
            f"a page shows RGB of 8 bits, {name} takes values (num_channels={processor.num_channels}, "
            f"intensity={processor.intensity}): use `hub-unets predict`, or the card's lines."
        )


def fetch_runtime(scratch):
    """The folder of the package, which the user's npm fetches and checks."""
    command = [find_npm(), "pack", PACKAGE, "--ignore-scripts", "--silent", "--pack-destination", str(scratch)]
    process = subprocess.run(command, cwd=scratch, capture_output=True, text=True, check=False)
    archives = list(scratch.glob("*.tgz"))
    if process.returncode or len(archives) != 1:
        reason = " ".join((process.stderr or process.stdout).split())[-300:]
        raise MissingToolError(
            f"npm did not fetch {PACKAGE}: {reason or 'it said nothing'}. --runtime takes a copy of yours."
        )
    with tarfile.open(archives[0]) as archive:
        archive.extractall(scratch, filter="data")
    return scratch / "package"


def find_npm():
    """The user's npm. Raises MissingToolError where there is none."""
    npm = shutil.which("npm")
    if npm is None:
        raise MissingToolError(
            f"npm is not installed, and fetches {PACKAGE}: install it, or unpack that and give --runtime."
        )
    return npm


def copy_runtime(package, folder):
    """The package's files that the page loads."""
    for name, target in RUNTIME.items():
        if not (package / "dist" / name).is_file():
            raise UserError(f"{package} is no unpacked {PACKAGE}: dist/{name} is missing.")
        shutil.copyfile(package / "dist" / name, folder / target)
