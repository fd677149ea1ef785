"""Sounds and videos, decoded safely: bytes of a file to samples and to frames. Needs PyAV (``kosmos-metalm[media]``).

What a file says of itself is not believed: seconds, frames and pixels are counted while it is decoded, and the limits
are counts, never times, so that every machine leaves out the same files. Playlists and scripts, which would make FFmpeg
read other files, are no formats here.
"""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from .segments import Unreadable

FORMATS = ("aac", "aiff", "amr", "asf", "au", "avi", "flac", "flv", "gif", "matroska", "webm", "mov", "mp4", "m4a",
           "3gp", "3g2", "mj2", "mp3", "mpeg", "mpegts", "mpegvideo", "ogg", "wav", "w64", "apng")  # fmt: skip
"""What FFmpeg may take a file for: containers of sound and moving pictures."""
MAX_BYTES = 1 << 30
"""Largest file that is read from a path."""


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
    path = Path(source).expanduser()
    if not path.is_file():  # a device never ends
        raise FileNotFoundError(f"{path}: no such {what}")
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
    import_av()
    from av.audio.resampler import AudioResampler

    parts: list[np.ndarray] = []
    count, most = 0, round(most_seconds * rate)
    with _opened(data, "sound") as container:
        if not container.streams.audio:
            raise Unreadable("the file holds no sound")
        resampler = AudioResampler(format="fltp", rate=rate)  # FFmpeg's own mixing would add channels, not average them
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


def read_through(data: bytes) -> None:
    """Decode all that a file of sound or video holds, and keep nothing: proof that it is whole.

    Raises:
        Unreadable: it is broken, or has neither sound nor pictures.
    """
    import_av()
    count = 0
    with _opened(data, "file") as container:
        streams = [stream for stream in container.streams if stream.type in ("audio", "video")]
        for _ in container.decode(streams) if streams else ():
            count += 1
    if not count:
        raise Unreadable("the file holds neither sound nor pictures")


def describe(data: bytes) -> str:
    """Return in a few words what a file of sound or video is, by its header: for people who look at a corpus."""
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
    import av

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
