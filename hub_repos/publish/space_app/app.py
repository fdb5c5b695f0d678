"""A U-Net in the browser: an image to its mask, its polyps and the maps of its gates.

The Space runs this file alone: it gets the model from its repository, and imports nothing of hub-unets.
"""

import html
import os
from pathlib import Path
from types import SimpleNamespace

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before gradio is imported

try:
    import spaces  # of ZeroGPU, before torch; changes nothing on other hardware
except ImportError:
    spaces = SimpleNamespace(GPU=lambda duration: lambda function: function)

import gradio as gr  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402
from transformers import AutoImageProcessor, AutoModel  # noqa: E402

MODEL, REVISION = "REPO_ID", "COMMIT"  # a push fills in the repository and its commit
if os.environ.get("MODEL"):
    MODEL, REVISION = os.environ["MODEL"], "main"
SOURCE = {"pretrained_model_name_or_path": MODEL, "revision": REVISION, "trust_remote_code": True}
PROCESSOR = AutoImageProcessor.from_pretrained(**SOURCE)
if not getattr(PROCESSOR, "takes_rgb", True):
    raise SystemExit(f"error: the page shows RGB of 8 bits, {MODEL} takes values: use `hub-unets predict`.")
NETWORK = AutoModel.from_pretrained(**SOURCE).eval()
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

EXAMPLES = sorted(map(str, Path(__file__).parent.glob("example_*.jpg")))  # generated frames
COLOURS = np.array(  # of the entries, in turn
    [(0, 220, 90), (40, 140, 255), (255, 225, 0), (0, 225, 235), (190, 90, 255), (255, 140, 0)], np.uint8
)
HEAT = np.array([(68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37)])  # evenly from 0 to 1
LARGEST = 25_000_000  # pixels
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")  # EPS would run a program
SESSIONS = 100  # kept at once, some hundred kB each; the oldest is dropped
FONTS = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}  # none from another host
CSS = """
.scrolled {max-height: 24em; overflow-y: auto}
.polyps {width: 100%; border: none !important; border-collapse: collapse}
.polyps :is(th, td) {padding: .3em .6em; text-align: right; border: none !important}
.polyps tr {border: none !important; border-bottom: 1px solid var(--border-color-primary) !important}
.polyps :is(th, td):nth-child(-n+2) {text-align: left; white-space: nowrap}
.swatch {display: inline-block; width: .8em; height: .8em; margin-right: .5em; border-radius: 2px}
"""
START = "<p>Upload or paste an image, or take an example.</p>"


@torch.inference_mode()
def forward(image):
    """The network's logits for a PIL image, and its gates' maps deepest first, all on the CPU."""
    inputs = PROCESSOR(image, return_tensors="pt").to(NETWORK.device, NETWORK.dtype)  # half precision, if saved so
    outputs = NETWORK(**inputs, output_attentions=True)
    return outputs.logits.cpu(), [gate.cpu() for gate in outputs.attentions or ()]


@spaces.GPU(duration=20)  # seconds
def run(image):
    """`forward` where there is a GPU, if any: ZeroGPU lends one for this call alone, to a process of its own."""
    return forward(image)


LOGITS_OF_BLANK, GATES_OF_BLANK = forward(Image.new("RGB", (64, 64)))  # on the CPU: no GPU is lent at the start
IS_BINARY, HAS_GATES = LOGITS_OF_BLANK.shape[1] == 1, bool(GATES_OF_BLANK)
NETWORK.to(DEVICE)


def segment(path, threshold):
    """An upload to all that the page shows: the input of `show`, before and after, mask, polyps, gates' maps.

    A session keeps the file's path and the logits, but no pixels: a large photograph has 75 MB of them.
    """
    if path is None:
        return None, None, None, START, None
    try:
        image = read(path)
        logits, gates_of_image = run(image)
    except Exception as error:  # Pillow has no one kind of error for damaged files
        return None, None, None, refusal(path, error), None
    shown = draw(np.asarray(image), logits, threshold)
    return (path, logits), *shown, gate_pictures(gates_of_image, image.size)


def refusal(path, error):
    reason = html.escape(str(error).replace(path, Path(path).name))
    return f"<p>No mask, this file can't be used: {reason}</p>"


def read(path):
    """A file as the processor sees it: RGB, 8 bits, upright, at its own size."""
    with Image.open(path, formats=FORMATS) as opened:
        if opened.width * opened.height > LARGEST:
            raise ValueError(f"{opened.width} x {opened.height} pixels are more than {LARGEST:,}: make it smaller.")
    return PROCESSOR.read(path)


def show(seen, threshold):
    """A file's path and logits to the outputs of `draw`; the network does not run again."""
    if seen is None:
        return None, None, START
    path, logits = seen
    try:
        pixels = np.asarray(read(path))
    except OSError:  # uploads are deleted after an hour
        return None, None, "<p>No mask: this image has been deleted, upload it again.</p>"
    return draw(pixels, logits, threshold)


def draw(pixels, logits, threshold):
    """Pixels H x W x 3 and logits to the pair before and after, the mask's picture, and the polyps' table.

    A head of several classes ignores the threshold.
    """
    options = {"mask_threshold": threshold, "target_sizes": [pixels.shape[:2]]}
    if getattr(PROCESSOR, "drop_outside_view", False):  # repositories of older releases do not have it
        options["images"] = [pixels]
    (result,) = PROCESSOR.post_process_instance_segmentation(logits, **options)
    ids, segments = result["segmentation"].numpy(), result["segments_info"]
    labels = np.array([0, *(segment["label_id"] for segment in segments)], np.uint8)  # ids count from 1
    after = pixels.copy()
    marked = ids > 0
    after[marked] = pixels[marked] // 2 + COLOURS[(ids[marked] - 1) % len(COLOURS)] // 2
    grey = labels[ids] * np.uint8(255 // (NETWORK.config.num_labels - 1))
    return (pixels, after), grey, table(segments, ids.size)


def table(entries, pixels):
    """Entries as HTML: a row for each, with its score and its area in pixels and in per cent of the image."""
    if not entries:
        return "<p>Nothing found: no pixel is marked.</p>"
    header = "".join(f"<th>{name}</th>" for name in ("", "label", "score", "area, pixels", "area, % of image"))
    rows = [
        "<tr><td>{}</td><td>{}</td><td>{:.3f}</td><td>{:,}</td><td>{:.2f}</td></tr>".format(
            f'<span class="swatch" style="background: rgb{tuple(COLOURS[(entry["id"] - 1) % len(COLOURS)].tolist())}">'
            f"</span>{entry['id']}",
            html.escape(NETWORK.config.id2label[entry["label_id"]]),
            entry["score"],
            entry["area"],
            100 * entry["area"] / pixels,
        )
        for entry in entries
    ]
    return f'<div class="scrolled"><table class="polyps"><tr>{header}</tr>{"".join(rows)}</table></div>'


def gate_pictures(maps, size):
    """The gates' maps, each 1 x 1 x h x w in 0..1, as pictures with captions, of the image's shape (width, height)."""
    scale = min(1, 512 / max(size))
    size = tuple(max(1, round(side * scale)) for side in size)
    pictures = []
    for number, gate_map in enumerate(maps, start=1):
        values = gate_map[0, 0].float().numpy()
        colours = [np.interp(values, np.linspace(0, 1, len(HEAT)), channel) for channel in HEAT.T]
        picture = Image.fromarray(np.stack(colours, axis=-1).round().astype(np.uint8))
        caption = f"gate {number}: {values.shape[0]} x {values.shape[1]}, {values.min():.2f} to {values.max():.2f}"
        pictures.append((picture.resize(size, Image.Resampling.NEAREST), caption))
    return pictures


NAME = f"[{MODEL}](https://huggingface.co/{MODEL})" if REVISION != "main" else f"`{MODEL}`"
with gr.Blocks(title="U-Net segmentation", delete_cache=(600, 3600)) as demo:
    gr.Markdown(
        f"# U-Net segmentation\n{NAME}. **Research only: not a medical device**, not for diagnosis, treatment or any "
        "decision about a patient. Uploads are deleted after an hour."
    )
    seen = gr.State(time_to_live=3600)
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            upload = gr.Image(
                label="Image", type="filepath", image_mode=None, sources=["upload", "clipboard"], elem_id="upload"
            )
            threshold = gr.Slider(
                0.01,
                0.99,
                PROCESSOR.mask_threshold,
                step=0.01,
                label="Threshold",
                info="A pixel is marked where its probability exceeds this.",
                visible=IS_BINARY,
                elem_id="threshold",
            )
            gr.Examples(EXAMPLES, upload, label="Examples: generated frames")
        with gr.Column(scale=3, min_width=300):
            before_after = gr.ImageSlider(
                label="Before and after", format="png", interactive=False, elem_id="before-after"
            )
            polyps = gr.HTML(START, elem_id="polyps")
            mask = gr.Image(
                label="Mask",
                format="png",
                interactive=False,
                height=260,
                buttons=["download", "fullscreen"],
                elem_id="mask",
            )
    gates = gr.Gallery(
        label="Maps of the gates, deepest first: dark is 0, bright is 1",
        format="png",
        columns=4,
        height="auto",
        object_fit="contain",
        buttons=["download_all", "fullscreen"],
        visible=HAS_GATES,
        elem_id="gates",
    )
    shown = [before_after, mask, polyps]
    quiet = {"api_visibility": "private", "show_progress": "minimal"}
    upload.change(segment, [upload, threshold], [seen, *shown, gates], **quiet).failure(
        lambda: (None, None, None, "<p>No mask: this file is not an image that can be read.</p>", None),
        None,
        [seen, *shown, gates],
        **quiet,
    )
    threshold.change(show, [seen, threshold], shown, trigger_mode="always_last", **quiet)
demo.queue(max_size=20)

if __name__ == "__main__":
    demo.launch(
        theme=gr.themes.Default(**FONTS),
        css=CSS,
        footer_links=["gradio"],
        run_history=False,  # would keep images in the browser
        ssr_mode=False,
        max_file_size="30mb",
        state_session_capacity=SESSIONS,
    )
