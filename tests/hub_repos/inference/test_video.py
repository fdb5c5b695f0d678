"""A video's frames: each once, upright, the same wherever reading starts; what is damaged is named."""

from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from hub_unets.hub_repos.inference import video as module
from hub_unets.hub_repos.inference.video import Video
from hub_unets.training.data.reading import read_image
from hub_unets.training.errors import UserError
from tests.hub_repos.clips import bars, video


def clip(path, every=1):
    return Video("clip", str(path), "", every)


def pixels(item):
    return np.asarray(read_image(item.read(), item.name)).astype(int)


def widths(items):
    """The width of each frame's red bar; None of one that can't be read."""
    found = []
    for item in items:
        try:
            found.append(int((pixels(item)[32, :, 0] > 120).sum()))
        except UserError:
            found.append(None)
    return found


def test_frames_are_named_by_their_index(tmp_path):
    path = video(tmp_path / "clip.mp4")
    assert [item.name for item in clip(path).items()] == [f"clip/{index:06d}" for index in range(5)]
    items = list(clip(path, 2).items())
    assert [item.name for item in items] == ["clip/000000", "clip/000002", "clip/000004"]
    assert [item.place for item in items] == [("clip", 0), ("clip", 1), ("clip", 2)]
    assert clip(path, 2).count() == 3 and widths(items) == [8, 10, 12]


UNEVEN = [0, 20, 40, 300, 310, 500, 501, 700, 740, 780, 1200, 1230, 1231, 1300, 1320, 1400, 1500, 1520, 1540, 1600]


@pytest.mark.parametrize(
    ("name", "codec", "times"),
    [
        ("b_frames.mp4", "libx264", None),
        ("uneven.mp4", "libx264", UNEVEN),
        ("uneven.mkv", "libx264", UNEVEN),
        ("no_times.avi", "libx264", None),
        ("seeking_guesses.mpg", "mpeg2video", None),
        ("plain.mov", "mpeg4", None),
    ],
)
def test_a_part_is_what_the_whole_has_there(tmp_path, name, codec, times):
    path = video(tmp_path / name, codec=codec, times=times, frames=20, g="6", bf="2")
    whole = list(clip(path).items())
    assert widths(whole) == pytest.approx(list(range(8, 28)), abs=1)
    for first in (0, 5, 6, 11, 17):
        part = list(clip(path).items(range(first, 20, 2)))
        assert [item.name for item in part] == [item.name for item in whole[first::2]]
        assert all(np.array_equal(pixels(item), pixels(whole[first + 2 * n])) for n, item in enumerate(part))


def test_only_the_part_is_decoded(tmp_path, monkeypatch):
    path = video(tmp_path / "clip.mp4", codec="libx264", frames=40, g="5", bf="0")
    sizes, decode = [], module._pictures
    monkeypatch.setattr(module, "_pictures", lambda packet: sizes.append(packet.size) or decode(packet))
    assert widths(clip(path).items(range(32, 34))) == pytest.approx([40, 41], abs=1)
    assert 4 <= len(sizes) <= 8


def positions(path):
    with av.open(str(path)) as container:
        return [(packet.pos, packet.size) for packet in container.demux(container.streams.video[0]) if packet.size]


def spoiled(path, number):
    """The clip with the bytes of a frame's packet overwritten."""
    content = bytearray(Path(path).read_bytes())
    position, size = positions(path)[number]
    content[position : position + size] = b"\xff" * size
    Path(path).write_bytes(content)


@pytest.mark.parametrize("number", [7, 11])
def test_a_damaged_frame_is_named_and_the_others_are_read(tmp_path, number):
    path = video(tmp_path / "clip.mp4", codec="libx264", frames=12, g="1", bf="0")  # each frame stands alone
    spoiled(path, number)
    items = list(clip(path).items())
    expected = [8 + index if index != number else None for index in range(12)]
    assert [item.name for item in items] == [f"clip/{index:06d}" for index in range(12)]
    assert widths(items) == expected
    with pytest.raises(UserError, match=f"clip.mp4: frame {number} can't be read .*: replace the file"):
        items[number].read()
    assert widths(clip(path).items(range(6, 12))) == expected[6:]


def test_a_file_that_breaks_off_gives_what_is_there(tmp_path):
    path = Path(video(tmp_path / "clip.mkv", codec="mjpeg", frames=12))
    path.write_bytes(path.read_bytes()[: positions(path)[8][0] + 20])
    found = widths(clip(path).items())
    assert found[:8] == pytest.approx(list(range(8, 16)), abs=1) and found[8:] in ([], [None])


def audio(path):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 2048), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())


def no_frames(path):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width = stream.height = 64
        container.start_encoding()


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (audio, "frame 0 can't be read .it holds no pictures, only sound or data."),
        (no_frames, "frame 0 can't be read .it holds no"),
        (lambda path: path.write_bytes(b""), "frame 0 can't be read"),
        (lambda path: path.write_text("no video"), "frame 0 can't be read .Invalid data"),
    ],
)
def test_a_file_without_a_frame_is_one_item_that_says_so(tmp_path, write, message):
    path = tmp_path / "empty.mp4"
    write(path)
    (item,) = clip(path).items()
    with pytest.raises(UserError, match=f"empty.mp4: {message}"):
        item.read()
    assert clip(path).count() == 1


def test_frames_may_change_their_size(tmp_path):
    parts = [video(tmp_path / f"{side}.avi", bars(2, (side, 64)), "mjpeg") for side in (64, 96)]
    packets = []
    for part in parts:
        with av.open(part) as container:
            packets += [bytes(packet) for packet in container.demux(container.streams.video[0]) if packet.size]
    with av.open(str(tmp_path / "both.mkv"), "w") as container:
        stream = container.add_stream("mjpeg", rate=25)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuvj420p"
        for number, content in enumerate(packets):
            packet = av.Packet(content)
            packet.pts = packet.dts = number
            packet.time_base, packet.stream = stream.codec_context.time_base or 1 / stream.average_rate, stream
            packet.is_keyframe = True
            container.mux(packet)
    items = list(clip(tmp_path / "both.mkv").items())
    assert [pixels(item).shape[1] for item in items] == [64, 64, 96, 96] and widths(items) == [8, 9, 8, 9]


def test_no_damaged_video_is_more_than_items_that_name_it(tmp_path):
    content = Path(video(tmp_path / "clip.mp4")).read_bytes()
    random = np.random.default_rng(0)
    for number in range(60):
        damaged = bytearray(content)
        for position in random.integers(len(content), size=12):
            damaged[position] = random.integers(256)
        path = tmp_path / "damaged.mp4"
        path.write_bytes(damaged if number % 2 else damaged[: random.integers(len(content))])
        assert clip(path).count() >= 1
        for item in clip(path).items():
            try:
                assert read_image(item.read(), item.name).width
            except UserError as error:
                assert str(error).startswith(f"{path}: frame ")


def test_a_frame_that_cannot_be_converted_names_the_video(tmp_path, monkeypatch):
    (item,) = clip(video(tmp_path / "clip.mp4", frames=1)).items()
    monkeypatch.setattr(module, "_encoded", lambda image: 1 / 0)
    with pytest.raises(ValueError, match="clip.mp4: frame 0 can't be read .division by zero.: replace the file"):
        item.read()


QUARTERS = {0: (1, 0, 0, 1), 90: (0, 1, -1, 0), 180: (-1, 0, 0, -1), 270: (0, -1, 1, 0)}  # clockwise: a, b, c, d


@pytest.mark.parametrize("angle", QUARTERS)
@pytest.mark.parametrize("mirrored", [False, True])
def test_a_video_that_was_filmed_turned_or_mirrored_is_read_upright(angle, mirrored, tmp_path):
    image = Image.new("RGB", (64, 32))
    image.paste((255, 0, 0), (0, 0, 32, 32))  # red to the left
    image.paste((0, 0, 255), (0, 0, 64, 16))  # blue above
    path = Path(video(tmp_path / "turned.mp4", [image]))
    content = bytearray(path.read_bytes())
    matrix = content.index(b"tkhd") + 44  # nine numbers
    a, b, c, d = QUARTERS[angle]
    for index, value in zip((0, 1, 3, 4), (-a, -b, c, d) if mirrored else (a, b, c, d), strict=True):
        content[matrix + 4 * index : matrix + 4 * index + 4] = (value << 16).to_bytes(4, "big", signed=True)
    path.write_bytes(content)
    (item,) = clip(path).items()
    shown = np.fliplr(np.asarray(image)) if mirrored else np.asarray(image)
    upright = np.rot90(shown, -angle // 90)  # the left side comes to the top when turned by 90
    assert pixels(item).shape == upright.shape and np.abs(pixels(item) - upright).mean() < 10
