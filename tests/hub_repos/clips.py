"""Short clips, made for tests."""

from fractions import Fraction

import av
import numpy as np
from PIL import Image


def bars(frames, size=(64, 64)):
    """Pictures of (width, height) whose red bar grows by a pixel from one to the next."""
    for index in range(frames):
        pixels = np.full((size[1], size[0], 3), 40, np.uint8)
        pixels[:, : 8 + index] = 200, min(255, 30 + 5 * index), 60
        yield Image.fromarray(pixels)


def video(path, pictures=None, codec="mpeg4", times=None, frames=5, **options):
    """Write PIL images as a clip, by default `bars`; `times` are milliseconds, else there are 25 a second."""
    pictures = list(bars(frames) if pictures is None else pictures)
    unit = Fraction(1, 25 if times is None else 1000)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.width, stream.height = pictures[0].size
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.codec_context.time_base = unit
        for picture, time in zip(pictures, times or range(len(pictures)), strict=True):
            frame = av.VideoFrame.from_image(picture)
            frame.pts, frame.time_base = time, unit
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return str(path)
