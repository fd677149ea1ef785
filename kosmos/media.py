"""Sounds and videos, decoded safely: bytes of a file to samples and to frames. Needs PyAV (``kosmos-metalm[media]``).

What a file says of itself is not believed: seconds, frames and pixels are counted while it is decoded, and the limits
are counts, never times, so that every machine leaves out the same files. Playlists and scripts, which would make FFmpeg
read other files, are no formats here.
"""

from __future__ import annotations

import base64
import binascii
import io
import os
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from .pictures import MAX_PIXELS, existing, upright
from .segments import Unreadable

FORMATS = ("aac", "aiff", "amr", "asf", "au", "avi", "flac", "flv", "gif", "matroska", "webm", "mov", "mp4", "m4a",
           "3gp", "3g2", "mj2", "mp3", "mpeg", "mpegts", "mpegvideo", "ogg", "wav", "w64", "apng")  # fmt: skip
"""What FFmpeg may take a file for: containers of sound and moving pictures."""
MAX_BYTES = 1 << 30
"""Largest file that is read from a path."""

MAX_SECONDS, MAX_FRAMES, MAX_DECODED = 1200.0, 36_000, 50_000_000_000
"""Longest video: 20 minutes, 30 frames a second of them, and so many pixels in all its frames."""
PICTURES = ("AVIF", "GIF", "JPEG", "PNG", "WEBP")
"""What Pillow reads: animations, which FFmpeg reads in part, and pictures, videos of one frame."""


def file_bytes(source: Any, what: str) -> bytes:
    """Return the bytes of a file: given as such, as a path, or as a ``data:`` address.

    Args:
        source: bytes, ``Path``, or a string that is a path or an address.
        what: what a message calls it, ``sound`` or ``video``.

    Raises:
        FileNotFoundError: no such file.
        Unreadable: the file is larger than :data:`MAX_BYTES`, or the address is not base64.
    """
    if isinstance(source, (bytes, bytearray, memoryview)):
        return bytes(source)
    if isinstance(source, str) and source.startswith("data:"):
        try:
            return base64.b64decode(source.partition(",")[2], validate=True)
        except binascii.Error as error:
            raise Unreadable(f"a data: address of a {what} that is not base64: {error}") from error
    if not isinstance(source, (str, Path)):
        raise Unreadable(f"{type(source).__name__} is no {what}; give a path or the bytes of a file")
    path = existing(os.path.expanduser(source), what)  # a device never ends
    if path.stat().st_size > MAX_BYTES:
        raise Unreadable(f"{path} has {path.stat().st_size:,} bytes; a {what} has at most {MAX_BYTES:,}")
    return path.read_bytes()


def read_sound(data: bytes, rate: int, most_seconds: float) -> np.ndarray:
    """Decode the sound of a file to one channel, the mean of all.

    Args:
        data: the file; of a video its sound is read.
        rate: samples a second that are returned.
        most_seconds: longest sound; decoding stops there.

    Returns:
        float32 samples (N,), −1 to 1.

    Raises:
        Unreadable: no sound in it, broken, without a sample, or longer than ``most_seconds``.
    """
    av = import_av()
    parts: list[np.ndarray] = []
    count, most = 0, round(most_seconds * rate)
    with _opened(data, "sound") as container:
        if not container.streams.audio:
            raise Unreadable("the file holds no sound")
        # FFmpeg's own mixing would add channels, not average them
        resampler = av.AudioResampler(format="fltp", rate=rate)
        for frame in _and_end(container.decode(audio=0)):
            for made in resampler.resample(frame):
                parts.append(made.to_ndarray().mean(axis=0))
                count += len(parts[-1])
            if count > most:
                raise Unreadable(f"the sound is longer than the {most_seconds:g} s that the encoder reads; cut it")
    if not count:
        raise Unreadable("the sound has no sample")
    samples = np.concatenate(parts)
    if not np.isfinite(samples).all():
        raise Unreadable("the sound holds values that are no numbers")
    return samples


def read_frames(data: bytes, count: int) -> list[PIL.Image.Image]:
    """Decode frames of a video, sampled by time: those seen in the middle of ``count`` equal stretches of it.

    Args:
        data: the file; a picture is a video of one frame.
        count: most frames; a video that has no more gives each of them once.

    Raises:
        Unreadable: no frame in it, broken, or beyond the limits of this module (and ``MAX_PIXELS`` a frame).
    """
    pictures = _animation(data)
    if pictures is not None:
        return _frames_of_pictures(pictures, count)
    import_av()
    with _opened(data, "video") as container:
        times = _times(container)
    wanted = sample_times(times, count)
    # a second pass, as only the first knows how long it is; the first decodes nothing
    with _opened(data, "video") as container:
        found: dict[int, PIL.Image.Image] = {}
        for number, frame in enumerate(container.decode(video=0)):
            _check_pixels(frame.width, frame.height, number + 1)
            if number in wanted:
                found[number] = frame.to_image()
            if number >= wanted[-1]:
                break
    if not found:
        raise Unreadable("the video has no frame")
    return [found[number] for number in wanted if number in found]


def sample_times(times: Sequence[float], count: int) -> list[int]:
    """Return which frames are seen in the middle of ``count`` equal stretches; all of them, where they are no more.

    Args:
        times: when each frame begins, in order, and when the last ends.
        count: number of stretches.
    """
    frames = len(times) - 1
    if frames <= count:
        return list(range(frames))
    begin, length = times[0], times[-1] - times[0]
    middles = [begin + length * (index + 0.5) / count for index in range(count)]
    return [min(max(bisect_right(times, middle) - 1, 0), frames - 1) for middle in middles]


def _times(container: Any) -> list[float]:
    """When each frame is shown, in seconds and in order, and when the last ends; read from packets, nothing decoded."""
    if not container.streams.video:
        raise Unreadable("the file holds no video")
    stream = container.streams.video[0]
    times: list[float | None] = []
    ends = 0.0
    for packet in container.demux(stream):
        if packet.size:
            time = None if packet.pts is None else float(packet.pts * packet.time_base)
            times.append(time)
            ends = max(ends, (time or 0.0) + float((packet.duration or 0) * packet.time_base))
        if len(times) > MAX_FRAMES:
            raise Unreadable(f"the video has more than {MAX_FRAMES:,} frames; cut it")
    if not times:
        raise Unreadable("the video has no frame")
    known = sorted(time for time in times if time is not None)
    if len(known) < len(times):  # a bare stream of pictures has no times: one frame is as long as the other
        return [float(number) for number in range(len(times) + 1)]
    if max(ends, known[-1]) - known[0] > MAX_SECONDS:
        raise Unreadable(f"the video is longer than {MAX_SECONDS:g} s; cut it")
    return [*known, max(ends, known[-1] + 1e-3)]


def _check_pixels(width: int, height: int, frames: int) -> None:
    if not 0 < width * height <= MAX_PIXELS:
        raise Unreadable(f"a frame of {width}×{height} pixels; at most {MAX_PIXELS:,} are read")
    if width * height * frames > MAX_DECODED:
        raise Unreadable(f"the video has more than {MAX_DECODED:,} pixels; make it smaller or cut it")


def _animation(data: bytes) -> PIL.Image.Image | None:
    """The file as Pillow opens it, nothing decoded yet; None: it is no picture."""
    PIL.Image.init()  # before it a process that has opened no picture yet knows no format
    try:
        picture = PIL.Image.open(io.BytesIO(data), formats=[name for name in PICTURES if name in PIL.Image.OPEN])
    except Exception:  # no picture, or a broken one: FFmpeg says what it is
        return None
    return picture


def _frame_count(picture: PIL.Image.Image) -> int:
    """Frames of an animation, which Pillow finds by walking through the file."""
    try:
        return getattr(picture, "n_frames", 1)
    except Exception as error:
        raise Unreadable(f"the video cannot be decoded: {error}") from error


def _frames_of_pictures(picture: PIL.Image.Image, count: int) -> list[PIL.Image.Image]:
    """The frames of an animation, each as long as it says."""
    number = _frame_count(picture)
    if number > MAX_FRAMES:
        raise Unreadable(f"the video has more than {MAX_FRAMES:,} frames; cut it")
    _check_pixels(*picture.size, number)
    times, frames = [0.0], []
    try:
        for index in range(number):
            picture.seek(index)
            picture.load()  # before it Pillow does not know how long a frame of WebP is
            times.append(times[-1] + max(float(picture.info.get("duration", 0)), 10.0) / 1000)  # browsers show 10 ms
        if times[-1] > MAX_SECONDS:
            raise Unreadable(f"the video is longer than {MAX_SECONDS:g} s; cut it")
        for index in sample_times(times, count):
            picture.seek(index)
            frames.append(upright(picture).copy())
    except (Unreadable, MemoryError):
        raise
    except Exception as error:  # as for pictures: decoders raise whatever they stumble over
        raise Unreadable(f"the video cannot be decoded: {error}") from error
    return frames


def read_through(data: bytes) -> None:
    """Decode all that a file of sound or video holds, and keep nothing: proof that it is whole.

    Raises:
        Unreadable: it is broken, has neither sound nor pictures, or is beyond the limits of a video.
    """
    if (pictures := _animation(data)) is not None:
        _frames_of_pictures(pictures, _frame_count(pictures))
        return
    import_av()
    count = 0
    with _opened(data, "file") as container:
        streams = [stream for stream in container.streams if stream.type in ("audio", "video")]
        for frame in container.decode(streams) if streams else ():
            count += 1
            if hasattr(frame, "width"):
                _check_pixels(frame.width, frame.height, count)
    if not count:
        raise Unreadable("the file holds neither sound nor pictures")


def describe(data: bytes) -> str:
    """Return in a few words what a file of sound or video is, by its header: for people who look at a corpus."""
    if (pictures := _animation(data)) is not None:
        try:
            return f"{pictures.format}, {_frame_count(pictures)} frames"
        except Unreadable as error:
            return str(error)
    try:
        import_av()
        with _opened(data, "file") as container:
            kinds = [stream.codec_context.name for stream in container.streams if stream.type in ("audio", "video")]
            seconds = "" if container.duration is None else f", {container.duration / 1e6:.1f} s"
            return f"{', '.join(kinds)}{seconds}"
    except (Unreadable, ModuleNotFoundError) as error:
        return str(error)


def import_av() -> Any:
    """Return PyAV; ModuleNotFoundError says how to install it."""
    try:
        import av
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError('sounds and videos need PyAV: pip install "kosmos-metalm[media]"') from error
    av.logging.set_level(av.logging.PANIC)  # what is wrong is said by the exception
    return av


@contextmanager
def _opened(data: bytes, what: str) -> Iterator[Any]:
    """Open a file in memory; whatever FFmpeg raises about it becomes one line."""
    av = import_av()
    options = {"format_whitelist": ",".join(FORMATS), "protocol_whitelist": "none"}
    try:
        with av.open(io.BytesIO(data), options=options, metadata_errors="replace") as container:
            yield container
    except (Unreadable, MemoryError):
        raise
    except Exception as error:  # FFmpegError, and ValueError, IndexError … of PyAV on damaged streams
        said = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise Unreadable(f"the {what} cannot be decoded: {said.splitlines()[0]}") from error


def _and_end(frames: Iterator[Any]) -> Iterator[Any]:
    """All frames, and None, at which a resampler gives back what it holds."""
    yield from frames
    yield None
