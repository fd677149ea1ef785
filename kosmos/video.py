"""The modality of videos: frames sampled by time, each through the vision tower of the images, one connector over all.

::

    file ── media.read_frames ── video_pixel_values (V, F, 3, S, S) ── vision_tower ── + time ── connector ── places
            (loader, chat)       video_frame_mask (V, F)               frozen          learned   over all    num_queries

As in Flamingo (arXiv 2204.14198, section 3.1.1). A video that has fewer frames than ``num_frames`` brings what it has;
the mask says so where it stands beside longer ones. The tower is that of the images, so a model that sees videos holds
it once, and with one frame does what an image model does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from transformers import AddedToken

from .connectors import build_connector
from .encoder_configs import QUERYING, KosmosConnectorConfig
from .media import file_bytes, read_frames
from .modality import Inputs, Modality, Reader
from .segments import Unreadable


@dataclass
class VideoReader(Reader):
    """How videos are read.

    Attributes:
        num_frames: most frames of a video, sampled by time.
    """

    connector: ClassVar[dict[str, str]] = {"num_tokens": "num_queries", "num_frames": "num_frames"}

    num_frames: int = 8


def _payload(processor: Any, video: Any) -> np.ndarray:
    """``uint8`` frames (F, 3, S, S), as the processor makes pictures of them."""
    frames = read_frames(file_bytes(video.data, "video"), processor.reader("video").num_frames)
    try:
        return np.stack([processor.image_processor.to_tensor(frame).numpy() for frame in frames])
    except (ValueError, OSError) as error:
        raise Unreadable(f"a frame of the video cannot be read: {error}") from error


def _stack(videos: Sequence[np.ndarray]) -> dict[str, Tensor]:
    """Frames (F, 3, S, S) each to (V, F, 3, S, S), padded with black behind, and their mask (V, F)."""
    pad = torch.nn.utils.rnn.pad_sequence
    frames = [torch.from_numpy(video) for video in videos]
    masks = [torch.ones(len(video), dtype=torch.long) for video in videos]
    return {"video_pixel_values": pad(frames, batch_first=True), "video_frame_mask": pad(masks, batch_first=True)}


def _read(model: Any, video_pixel_values: Tensor, video_frame_mask: Tensor | None = None) -> Tensor:
    """Videos (V, F, 3, S, S) to (V, Q, D); padding goes through no tower."""
    if video_frame_mask is None:
        features = model.vision_tower(video_pixel_values.flatten(0, 1)).to(model.dtype)
        return model.video_connector(features.unflatten(0, video_pixel_values.shape[:2]))
    valid_VF = video_frame_mask.bool()
    features = model.vision_tower(video_pixel_values[valid_VF]).to(model.dtype)
    features_VFPC = features.new_zeros(*valid_VF.shape, *features.shape[1:])
    features_VFPC[valid_VF] = features
    return model.video_connector(features_VFPC, valid_VF)


def _places(owner: Any, inputs: Inputs) -> list[int]:
    return [owner.places_of("video")] * len(inputs["video_pixel_values"])


def _black(config: Any, frames: int, device: torch.device) -> dict[str, Tensor]:
    size = config.vision_config.image_size
    return {"video_pixel_values": torch.zeros(1, frames, 3, size, size, device=device)}


def _count_frames(inputs: Inputs) -> int:
    mask_VF = inputs.get("video_frame_mask")
    return inputs["video_pixel_values"].shape[:2].numel() if mask_VF is None else int(mask_VF.sum())


VIDEO = Modality(
    name="video",
    inputs=("video_pixel_values", "video_frame_mask"),
    config="video_connector_config",
    connector_config="video_connector_config",
    token="video_token_id",
    encoder="vision_tower",
    connector="video_connector",
    parts=("vision", "video connector"),
    marks=("<video>", "<video_slot>", "</video>"),
    payload=_payload,
    stack=_stack,
    build=None,
    read=_read,
    places=_places,
    smallest=lambda config, device: _black(config, 1, device),
    typical=lambda config, device: _black(config, config.video_connector_config.num_frames, device),
    units=_count_frames,
    unit="frame",
    about=lambda config: (
        f"The vision encoder reads up to {config.video_connector_config.num_frames} frames of a video, too."
    ),
    reader=VideoReader,
)


def see_videos(model: Any, processor: Any, num_frames: int = 8) -> None:
    """Let a model that sees images read videos as well, without any training.

    The video connector begins as the image connector, with embeddings of time that are zeros, and the marks around a
    video as those around an image: a video of one frame is that image, one of several a picture of more patches.

    Args:
        model: ``KosmosForConditionalGeneration``; its connector has queries.
        processor: its processor.
        num_frames: most frames of a video.

    Raises:
        ValueError: the model sees no images, reads videos already, or its connector keeps every feature.
    """
    config = model.config
    if config.vision_config is None or config.video_connector_config is not None:
        raise ValueError(f"the model {'sees no images' if config.vision_config is None else 'reads videos already'}")
    if config.connector_config.kind not in QUERYING:
        raise ValueError(f"a connector of kind {config.connector_config.kind!r} has no queries to read frames with")
    _write_marks(model, processor)
    fields = {**config.connector_config.to_dict(), "num_frames": num_frames}
    config.video_connector_config = KosmosConnectorConfig(**fields)
    config.video_token_id = processor.token_id(VIDEO.marks[1])
    text, core = config.text_config, model.model
    made: Any = build_connector(
        config.video_connector_config, core.vision_tower.width, text.hidden_size, text.num_attention_heads
    )
    made.reader.load_state_dict(core.connector.state_dict())
    core.video_connector = made.to(model.device, model.dtype).train(model.training)
    processor.readers["video"] = VideoReader(num_tokens=config.num_image_tokens, num_frames=num_frames)


def _write_marks(model: Any, processor: Any) -> None:
    """Append the marks of videos to the vocabulary; the outer two begin as those of images."""
    tokenizer = processor.tokenizer
    marks = [AddedToken(mark, normalized=False, special=True) for mark in VIDEO.marks]
    tokenizer.add_special_tokens({"extra_special_tokens": marks}, replace_extra_special_tokens=False)
    model.resize_token_embeddings(max(len(tokenizer), model.config.text_config.vocab_size), mean_resizing=False)
    begin, *_, end = processor.image_token_ids()
    matrices = [model.get_input_embeddings().weight, model.get_output_embeddings().weight]
    with torch.no_grad():
        for mark, image_mark in ((VIDEO.marks[0], begin), (VIDEO.marks[2], end)):
            for matrix in matrices:
                matrix[processor.token_id(mark)] = matrix[image_mark]
