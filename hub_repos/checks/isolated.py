"""Loads a built repository as a stranger would; hub_repos/verify.py runs it in a separate process, `python -I`.

Usage: isolated.py REPOSITORY WORK. WORK holds image.png or image.npy, and snippets.json, a list of Python texts. The
process writes checks.json, a list of [name, passed, reason] that ends with the first failure; found.npz, the arrays;
and resaved/, the repository as its user would save it.
"""

import contextlib
import ctypes
import importlib.util
import io
import json
import os
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

AUTO_CLASSES = ("AutoModel", "AutoModelForSemanticSegmentation", "AutoModelForImageSegmentation")
NEW_NETWORK, NEW_USER = 0x40000000, 0x10000000  # CLONE_NEWNET, CLONE_NEWUSER of Linux
SAME_MASK = 1e-3  # share of an image's pixels
SAME_LOGITS = 1e-4  # between ONNX and PyTorch; if the largest is above 10, relative to a tenth of it
SECONDS = 900  # for all steps
PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of Linux
MOST_MEMORY, MEMORY_SHARE = 16 * 2**30, 0.5  # bytes, and share of the machine's
MOST_OPEN_FILES = 512
REACHING_OUT = ("socket.connect", "socket.bind", "socket.send", "socket.getaddrinfo", "socket.gethostby")


def without_network():
    """A network namespace of its own where the system grants one; on any system, connecting raises an error."""
    with contextlib.suppress(OSError, AttributeError):
        unshare = ctypes.CDLL(None).unshare
        if unshare(NEW_NETWORK):  # as root; anyone else needs a user namespace around it
            unshare(NEW_NETWORK | NEW_USER)

    def refuse(event, arguments):
        if event.startswith(REACHING_OUT):
            raise OSError(f"no network while a repository is checked ({event})")

    sys.addaudithook(refuse)


def most_memory():
    """Bytes that checking a repository may take."""
    try:
        installed = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return MOST_MEMORY
    return min(MOST_MEMORY, int(MEMORY_SHARE * installed))


def limit(repository):
    """Bound time, memory and file size, and end with the parent process, as far as the system can."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PARENT_DEATH_SIGNAL, signal.SIGKILL)
    with contextlib.suppress(ImportError):
        import resource

        largest = max(path.stat().st_size for path in Path(repository).iterdir())
        for resource_kind, bound in (
            (resource.RLIMIT_CPU, SECONDS * (os.cpu_count() or 1)),
            (resource.RLIMIT_DATA, most_memory()),
            (resource.RLIMIT_FSIZE, 2 * largest + 2**26),
            (resource.RLIMIT_NOFILE, MOST_OPEN_FILES),
            (resource.RLIMIT_CORE, 0),
        ):
            with contextlib.suppress(OSError, ValueError):
                resource.setrlimit(resource_kind, (bound, bound))


def load(state):
    """Every Auto class loads, with no key missing, unexpected or of another shape; so do processor and pipeline."""
    import transformers

    options = {"trust_remote_code": True}
    for name in AUTO_CLASSES:
        auto_class = getattr(transformers, name)
        model, info = auto_class.from_pretrained(state.repository, output_loading_info=True, **options)
        wrong = {kind: sorted(map(str, keys)) for kind, keys in info.items() if keys}
        if wrong:
            raise ValueError(f"{name}: {json.dumps(wrong)}")
        state.models[name] = model.eval()
    state.config = transformers.AutoConfig.from_pretrained(state.repository, **options)
    state.processor = transformers.AutoImageProcessor.from_pretrained(state.repository, **options)
    state.segment = transformers.pipeline("image-segmentation", model=state.repository, **options)
    if type(state.segment).__name__ != "UNetImageSegmentationPipeline":
        raise ValueError(f"the pipeline is a {type(state.segment).__name__}")


def logits(state):
    """Every Auto class gives the same finite logits."""
    import numpy as np
    from PIL import Image, ImageOps

    mirrored = ImageOps.mirror(state.image) if isinstance(state.image, Image.Image) else state.image[:, ::-1]
    pixels = state.processor([state.image, mirrored])["pixel_values"]
    state.arrays["pixel_values"] = pixels.numpy()
    for name, model in state.models.items():
        outputs = model(pixels, output_attentions=True)
        state.arrays[name] = outputs.logits.numpy()
    state.arrays |= {f"attentions.{index}": gate.numpy() for index, gate in enumerate(outputs.attentions or ())}
    first = state.arrays[AUTO_CLASSES[0]]
    if not np.isfinite(first).all():
        raise ValueError("a logit is not finite")
    for name in AUTO_CLASSES:
        if not np.array_equal(state.arrays[name], first):
            raise ValueError(f"{name} and {AUTO_CLASSES[0]} give different logits")


def onnx_logits(state):
    """model.onnx gives the model's logits for the image, its mirror image and unpredictable noise."""
    import numpy as np
    import onnxruntime
    import torch

    session = onnxruntime.InferenceSession(Path(state.repository) / "model.onnx", providers=["CPUExecutionProvider"])
    pixels = state.arrays["pixel_values"]
    noise = np.random.default_rng().normal(size=pixels.shape).astype(np.float32)
    for inputs in (pixels, noise):
        expected = state.models["AutoModel"](torch.from_numpy(inputs)).logits.numpy()
        (output,) = session.run(["logits"], {"pixel_values": inputs})
        difference = np.abs(output - expected).max() / max(1, np.abs(expected).max() / 10)
        if not difference <= SAME_LOGITS:
            raise ValueError(f"model.onnx gives logits that differ from the model's by {difference:.2g}")


def pipeline(state):
    """The union of the pipeline's entries is the processor's mask: for a path, a PIL image and a batch."""
    outputs = state.models["AutoModel"](**state.processor(state.image))
    state.mask = state.processor.post_process_semantic_segmentation(
        outputs, target_sizes=[state.size], images=[state.image]
    )[0].numpy()
    results = [state.segment(state.path), state.segment(state.image)]
    results += state.segment([state.path, state.path], batch_size=2)
    for entries in results:
        for entry in entries:
            if entry["label"] not in state.config.id2label.values() or not 0 <= entry["score"] <= 1:
                raise ValueError(f"an entry has label {entry['label']!r} and score {entry['score']}")
        _require_union(entries, state)
    state.arrays["union"] = _union(results[0], state)


def endpoint(state):
    """`handler.py`, loaded by its path as an Inference Endpoint does, returns JSON whose union is the mask."""
    import base64

    from PIL import Image

    spec = importlib.util.spec_from_file_location("handler.EndpointHandler", Path(state.repository, "handler.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    handler = module.EndpointHandler(state.repository)
    encoded = base64.b64encode(Path(state.path).read_bytes()).decode()
    for inputs in (state.image, encoded) if isinstance(state.image, Image.Image) else (encoded,):
        entries = json.loads(json.dumps(handler({"inputs": inputs})))
        for entry in entries:
            entry["mask"] = Image.open(io.BytesIO(base64.b64decode(entry["mask"])))
        _require_union(entries, state)


def snippets(state):
    """The card's snippets run, and give the same mask."""
    import numpy as np

    for text in json.loads((state.work / "snippets.json").read_text(encoding="utf-8")):
        names = {}
        with contextlib.redirect_stdout(io.StringIO()):
            exec(compile(text, "README.md", "exec"), names)
        if "segment" in names:
            _require_union(names["segment"](state.path), state)
        # rounding depends on where tensors lie in memory: a pixel at the threshold may fall on either side
        mask = np.asarray(names.get("mask", state.mask))
        if mask.shape != state.mask.shape or (mask != state.mask).mean() > SAME_MASK:
            raise ValueError("a snippet gives another mask than the processor")


def saves_again(state):
    """Model and processor, saved and loaded again, give the same logits."""
    import numpy as np
    import torch
    import transformers

    resaved = str(state.work / "resaved")
    state.models["AutoModel"].save_pretrained(resaved)
    state.processor.save_pretrained(resaved)
    model = transformers.AutoModel.from_pretrained(resaved, trust_remote_code=True).eval()
    pixels = torch.from_numpy(state.arrays["pixel_values"])
    if not np.array_equal(model(pixels).logits.numpy(), state.arrays["AutoModel"]):
        raise ValueError("saved and loaded again it gives other logits")


def _union(entries, state):
    import numpy as np

    numbers = {name: label for label, name in state.config.id2label.items()}
    union = np.zeros(state.size, np.int64)
    for entry in entries:
        union += numbers[entry["label"]] * (np.asarray(entry["mask"]) > 0)
    return union


def _require_union(entries, state):
    union = _union(entries, state)
    if union.shape != state.mask.shape or (union != state.mask).any():
        raise ValueError(f"the union of {len(entries)} entries is not the processor's mask")


def main(repository, work):
    limit(repository)
    without_network()
    sys.dont_write_bytecode = True  # the handler's file runs in place
    sys.modules["hub_unets"] = None  # as if the project were not installed
    import numpy as np
    import torch
    from PIL import Image

    torch.set_num_threads(1)
    work = Path(work)
    (path,) = work.glob("image.*")
    image = np.load(path) if path.suffix == ".npy" else Image.open(path)
    size = image.shape[:2] if path.suffix == ".npy" else (image.height, image.width)
    state = SimpleNamespace(repository=repository, work=work, path=str(path), image=image, size=size)
    state.models, state.arrays = {}, {}
    outcomes = []
    has_onnx = (Path(repository) / "model.onnx").exists()
    for step in (load, logits, *([onnx_logits] if has_onnx else []), pipeline, endpoint, snippets, saves_again):
        name = step.__name__.replace("_", " ")
        try:
            with torch.inference_mode():
                step(state)
        except Exception as error:
            outcomes.append((name, False, f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"))
            break
        outcomes.append((name, True, ""))
    np.savez(work / "found.npz", **state.arrays)
    if any(name.startswith("hub_unets.") for name in sys.modules):
        outcomes.append(("isolation", False, "the project was imported"))
    (work / "checks.json").write_text(json.dumps(outcomes), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
