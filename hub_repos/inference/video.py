"""The frames of a video, read from the keyframe before the first that is wanted."""

import io
from array import array
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import chain, pairwise
from typing import NamedTuple

from PIL import Image

from hub_unets.hub_repos.inference.items import Item, Place
from hub_unets.training.errors import UserError

FRAME_QUALITY = 95  # of the JPEG that a video's frame becomes
NO_PICTURE = "the decoder gives no picture"


class Timeline(NamedTuple):
    """The frames of a video as its packets tell, without decoding; 8 bytes a frame.

    Attributes:
        times: when each is shown, ascending, in the stream's time base; None where the file does not tell.
        keyframes: the times of the frames that need no other one, ascending.
        count: of frames; at least 1, so that what holds none has a frame that can't be read.
        problem: why no more could be read; empty where all were.
    """

    times: array | None
    keyframes: list[int]
    count: int
    problem: str = ""

    def keyframe_before(self, index: int) -> int | None:
        """The time of the last keyframe that is not after frame `index`; None: read from the start."""
        if self.times is None or index >= len(self.times):
            return None
        number = bisect_right(self.keyframes, self.times[index]) - 1
        return self.keyframes[number] if number > 0 else None

    def index(self, time: int | None) -> int | None:
        """The number of the frame that is shown at `time`; None where there is none."""
        if self.times is None or time is None:
            return None
        index = bisect_left(self.times, time)
        return index if index < len(self.times) and self.times[index] == time else None


class Video(NamedTuple):
    """A video; every `every`-th frame is an item called name/index."""

    name: str
    file: str
    stamp: str
    every: int

    def timeline(self) -> Timeline:
        """Its frames; of a file that is no video, one frame that can't be read."""
        import av

        times, keyframes, count, problem, has_b_frames = array("q"), [], 0, "", False
        try:
            with av.open(self.file) as container:
                if not container.streams.video:
                    return Timeline(None, [], 1, "it holds no pictures, only sound or data")
                has_b_frames = container.streams.video[0].codec_context.has_b_frames
                for packet in container.demux(container.streams.video[0]):
                    if packet.size and not packet.is_discard:
                        count += 1
                        times.extend([] if packet.pts is None else [packet.pts])
                        keyframes += [packet.pts] if packet.is_keyframe and packet.pts is not None else []
        except Exception as error:  # a damaged file can raise many classes
            problem = _reason(error)
        if not count:
            return Timeline(None, [], 1, problem or "it holds no frame")
        ordered = array("q", sorted(times))
        tells = len(ordered) == count and all(early < late for early, late in pairwise(ordered))
        is_guess = has_b_frames and ordered == times  # of AVI, which has no times: B frames are shown in another order
        return Timeline(ordered if tells and not is_guess else None, sorted(keyframes), count + bool(problem), problem)

    def items(self, wanted: Iterable[int] | None = None, timeline: Timeline | None = None) -> Iterator[Item]:
        """One item for each wanted frame; the `read` of one that the file does not give raises UserError.

        Args:
            wanted: indices of frames, ascending; None is every `every`-th.
            timeline: this video's, if it was read before.
        """
        timeline = timeline or self.timeline()
        waiting = deque(range(0, timeline.count, self.every) if wanted is None else wanted)
        if not waiting:
            return
        problem = ""
        for index, frame, reason in self._from(timeline, waiting[0]):
            problem = reason or problem
            while waiting and waiting[0] < index:
                yield self._refused(waiting.popleft(), problem or NO_PICTURE)
            if frame is not None and waiting and waiting[0] == index:
                yield self._item(waiting.popleft(), lambda index=index, frame=frame: self._read(index, frame))
            if not waiting:
                return
        problem = timeline.problem or problem
        if timeline.times is not None or problem:  # without times the packets may be more than the frames
            for index in waiting:
                yield self._refused(index, problem or NO_PICTURE)

    def _from(self, timeline: Timeline, first: int):
        """(index, frame, "") of the frames from a keyframe at or before `first`, and (index, None, reason) of errors.

        A file whose seeking misses the keyframe is read from its start.
        """
        start = timeline.keyframe_before(first)
        frames = self._decoded(timeline, start)
        head = next(frames, None)
        if start is not None and (head is None or head[0] > first):
            frames, head = self._decoded(timeline, None), None
        yield from frames if head is None else chain([head], frames)

    def _decoded(self, timeline: Timeline, start: int | None):
        import av

        least = 0
        try:
            with av.open(self.file) as container:
                stream = container.streams.video[0]
                stream.thread_type = "AUTO"
                if start is not None:
                    container.seek(start, stream=stream)
                for packet in container.demux(stream):
                    frames, reason = _pictures(packet)
                    for frame in frames:
                        index = timeline.index(frame.pts)
                        if index is None and least == 0 and start is not None:
                            return  # MPEG-PS: times are guesses after a seek
                        index = least if index is None else max(index, least)
                        least = index + 1
                        yield index, frame, ""
                    if reason:
                        yield least, None, reason
        except Exception as error:  # a damaged file can raise many classes
            yield least, None, _reason(error)

    def _read(self, index: int, frame) -> dict:
        """A frame as a JPEG, upright as the video's own header says."""
        try:
            return _encoded(_upright(frame))
        except Exception as error:
            return self._refuse(index, _reason(error))

    def _refuse(self, index: int, problem: str) -> dict:
        raise UserError(f"{self.file}: frame {index} can't be read ({problem}): replace the file")

    def _refused(self, index: int, problem: str) -> Item:
        return self._item(index, lambda: self._refuse(index, problem))

    def frame_name(self, index: int) -> str:
        return f"{self.name}/{index:06d}"

    def _item(self, index: int, read) -> Item:
        place = Place(self.name, index // self.every)
        return Item(self.frame_name(index), f"{self.file}, frame {index}", self.stamp, read, place)

    def count(self) -> int:
        """About how many items there are, from the video's header."""
        import av

        try:
            with av.open(self.file) as container:
                stream = container.streams.video[0]
                seconds = (container.duration or 0) / av.time_base
                frames = stream.frames or round(seconds * (stream.average_rate or 0))
        except Exception:  # a damaged file can raise many classes
            return 1
        return max(1, -(-frames // self.every))


def _pictures(packet):
    """A packet's frames, and why there are none where it is damaged."""
    import av

    try:
        return packet.decode(), ""
    except av.error.EOFError:  # the decoder was drained before
        return [], ""
    except av.FFmpegError as error:
        return [], _reason(error)


def _upright(frame) -> Image.Image:
    """A frame as RGB image, turned and mirrored as the display matrix beside it says."""
    image, angle = frame.to_image(), frame.rotation  # degrees, counterclockwise
    if _is_mirrored(frame):
        image, angle = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), angle + 180
    return image.rotate(angle, expand=True) if angle % 360 else image


def _is_mirrored(frame) -> bool:
    """Whether the frame's display matrix, nine numbers of 32 bits, has a negative determinant."""
    matrix = next((data for data in frame.side_data if data.type.name == "DISPLAYMATRIX"), None)
    if matrix is None:
        return False
    a, b, _, c, d, *_ = memoryview(bytes(matrix)).cast("i")
    return a * d - b * c < 0


def _encoded(image) -> dict:
    file = io.BytesIO()
    image.save(file, format="JPEG", quality=FRAME_QUALITY, subsampling=0)
    return {"bytes": file.getvalue(), "path": None}


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error) or type(error).__name__
