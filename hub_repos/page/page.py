"""The page: its files, the numbers of the image processor that it reads, the network as ONNX, the runtime."""

import json
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

from huggingface_hub import snapshot_download
from PIL import Image

from hub_unets.hub_repos.repository.card import EXAMPLE
from hub_unets.hub_repos.repository.export import ONNX, export_onnx
from hub_unets.modeling.image_processing_unet import UNetImageProcessor
from hub_unets.modeling.variants import find_variant
from hub_unets.training.data.phantoms import phantom

TEMPLATES = Path(__file__).parent

FILES = {"browser.html": "index.html", "browser.css": "page.css", "browser.js": "page.js"}

PACKAGE = "onnxruntime-web@1.30.0"

RUNTIME = {  # as the package names them, and as the page does: not every server knows what .mjs is
    "ort.wasm.bundle.min.mjs": "onnxruntime.js",
    "ort-wasm-simd-threaded.wasm": "ort-wasm-simd-threaded.wasm",
}

SETTINGS = "settings.json"

RESAMPLES = {Image.Resampling.NEAREST, Image.Resampling.BILINEAR, Image.Resampling.BICUBIC}


def build_page(model, out, runtime=None):
    """Write the page of a model.

    Args:
        model: a built repository, or a Hub id; without model.onnx its network is exported.
        out: folder to write: absent, empty, or an earlier page, which is replaced as a whole.
        runtime: an unpacked onnxruntime-web; None fetches one with npm.

    Raises:
        ValueError: what is missing, or what the page can't do as the image processor does it.
    """
    out = Path(out)
    refuse_foreign_folder(out)
    folder, name = locate(model)
    settings = page_settings(folder, name)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as scratch:
        staged = Path(scratch) / "page"
        staged.mkdir()
        for source, target in FILES.items():
            shutil.copyfile(TEMPLATES / source, staged / target)
        copy_runtime(Path(runtime) if runtime else fetch_runtime(Path(scratch)), staged)
        (staged / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        Image.fromarray(phantom(7, 0)[0]).save(staged / EXAMPLE)
        if (folder / ONNX).is_file():
            shutil.copyfile(folder / ONNX, staged / ONNX)
        else:
            export_onnx(folder, staged / ONNX)
        if out.exists():
            shutil.rmtree(out)
        staged.rename(out)


def locate(model):
    """(folder, what the page calls the model) of a folder or a Hub id; no code is fetched from there."""
    folder = Path(model)
    if folder.is_dir():
        results = folder / "results.json"
        return folder, json.loads(results.read_text(encoding="utf-8"))["run"][
            "name"
        ] if results.exists() else folder.name
    if str(model).count("/") != 1:
        raise ValueError(f"{model} is neither a folder nor a Hub id such as owner/name.")
    names = ["config.json", "preprocessor_config.json", "model.safetensors", ONNX]
    return Path(snapshot_download(str(model), allow_patterns=names)), str(model)


def page_settings(folder, name):
    """What page.js reads: numbers of the image processor, and names of the labels by number.

    Raises:
        ValueError: the page has no such preprocessing.
    """
    for needed in ("config.json", "preprocessor_config.json"):
        if not (folder / needed).is_file():
            raise ValueError(f"{name} is no built repository: {needed} is missing; build one with hub_repos.build.")
    fields = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config = find_variant(fields.get("model_type"))[0].from_dict(fields)
    processor = UNetImageProcessor.from_pretrained(folder)
    if config.num_channels != 3:
        raise ValueError(f"the page gives a network 3 channels (num_channels), {name} takes {config.num_channels}.")
    if not processor.do_resize:
        raise ValueError("the page resizes every image to `size`, and preprocessor_config.json has do_resize false.")
    if processor.resample not in RESAMPLES:
        known = ", ".join(f"{one.value} ({one.name.lower()})" for one in sorted(RESAMPLES))
        raise ValueError(f"preprocessor_config.json: resample is {processor.resample}, the page knows {known}.")
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


def fetch_runtime(scratch):
    """The folder of the package that the user's own npm fetches and checks."""
    npm = shutil.which("npm")
    if npm is None:
        raise ValueError(
            f"npm is not installed, and fetches {PACKAGE}: install it, or unpack that and give --runtime."
        )
    command = [npm, "pack", PACKAGE, "--ignore-scripts", "--silent", "--pack-destination", str(scratch)]
    done = subprocess.run(command, cwd=scratch, capture_output=True, text=True, check=False)
    archives = list(scratch.glob("*.tgz"))
    if done.returncode or len(archives) != 1:
        reason = " ".join((done.stderr or done.stdout).split())[-300:]
        raise ValueError(
            f"npm did not fetch {PACKAGE}: {reason or 'it said nothing'}. --runtime takes a copy of yours."
        )
    with tarfile.open(archives[0]) as archive:
        archive.extractall(scratch, filter="data")
    return scratch / "package"


def copy_runtime(package, folder):
    """The package's files that the page loads."""
    for name, target in RUNTIME.items():
        if not (package / "dist" / name).is_file():
            raise ValueError(f"{package} is no unpacked {PACKAGE}: dist/{name} is missing.")
        shutil.copyfile(package / "dist" / name, folder / target)


def refuse_foreign_folder(out):
    """Raise ValueError unless `out` is absent, empty, or an earlier page."""
    is_page = (out / SETTINGS).is_file() and (out / "page.js").is_file()
    if out.exists() and not is_page and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} is not empty and not an earlier page: choose another folder.")
