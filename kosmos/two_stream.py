"""Models of transformers that read an image and a text together: ViLT, BridgeTower, FLAVA and others like them.

What they return differs, and where the text stands in it; ``read_streams`` finds both. One that only keeps image and
text apart (CLIP) is refused when it is built, by a trial on the meta device.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import AttentionInterface

from .encoder_configs import KosmosFusedConfig
from .encoders import from_description

UNMASKED = "kosmos_unmasked"
AttentionInterface.register(UNMASKED, sdpa_attention_forward)


def build_two_stream(config: KosmosFusedConfig) -> tuple[nn.Module, int]:
    """Return transformers' model of ``config.model_config`` with random weights, and the width of its states.

    Raises:
        ValueError: transformers knows no such model, or it makes no states of an image with a text.
    """
    with torch.device("meta"), torch.no_grad():
        size = config.image_size or 224
        trial = read_streams(_build(config).eval(), torch.zeros(1, 3, size, size), torch.zeros(1, 1).long(), None)
    return _build(config), trial[0].shape[-1]


def _build(config: KosmosFusedConfig) -> Any:
    model: Any = from_description(config.model_config, "fused_config", "vilt")
    if not {"input_ids", "pixel_values"} <= inspect.signature(model.forward).parameters.keys():
        raise ValueError(f"{_name(model)} does not read an image with a text; try 'vilt'")
    if hasattr(model, "pooler"):  # behind the states, and without a gradient
        model.pooler = None
    return model


def _name(model: Any) -> str:
    return f"fused_config.model_config: a {model.config.model_type}"


def read_streams(
    model: Any, pixels_S3HW: Tensor, ids_SL: Tensor, valid_SL: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Return the states (S, N, C) that the model makes of images with texts, and which count, (S, N); None: all.

    Args:
        pixels_S3HW: normalised images.
        ids_SL: texts.
        valid_SL: which tokens count; None: all.

    Raises:
        ValueError: the model keeps image and text apart, or cannot read what it was given.
    """
    valid = torch.ones_like(ids_SL) if valid_SL is None else valid_SL.long()
    seen = {"image_embeds": _embed(model, pixels_S3HW)} if model.config.model_type == "vilt" else {}
    if seen:
        seen["pixel_mask"] = torch.ones(seen["image_embeds"].shape[:2], dtype=torch.long, device=ids_SL.device)
    if ids_SL.is_meta:
        _leave_masks(model)
    try:
        output = model(input_ids=ids_SL, attention_mask=valid, **(seen or {"pixel_values": pixels_S3HW}))
    except (RuntimeError, TypeError, ValueError, NotImplementedError) as error:
        if not ids_SL.is_meta:
            raise
        raise ValueError(f"{_name(model)} cannot read an image with a text: {str(error).splitlines()[0]}") from error
    states_SNC, text_first = _states(model, output)
    if valid_SL is None:
        return states_SNC, None
    others = valid_SL.new_ones(len(ids_SL), states_SNC.shape[1] - ids_SL.shape[1])
    return states_SNC, torch.cat([valid_SL, others] if text_first else [others, valid_SL], dim=1)


def _leave_masks(model: nn.Module) -> None:
    """Let a model on the meta device make no mask: it would ask whether the mask hides anything, which is not known.

    transformers makes none for an attention that it has no mask of. The operations are as many.
    """
    for part in model.modules():
        if (config := getattr(part, "config", None)) is not None:
            config._attn_implementation = UNMASKED


def _states(model: Any, output: Any) -> tuple[Tensor, bool]:
    """The states of text and image, and whether the text's come first; ValueError if there are none of both."""
    if (together := getattr(output, "last_hidden_state", None)) is not None:  # ViLT
        return together, True
    if (together := getattr(output, "multimodal_embeddings", None)) is not None:  # FLAVA
        return together, False
    text, image = (getattr(output, f"{kind}_features", None) for kind in ("text", "image"))
    if text is not None and image is not None:  # BridgeTower
        return torch.cat([text, image], dim=1), True
    raise ValueError(f"{_name(model)} keeps image and text apart: it is no encoder of both together; try 'vilt'")


def _embed(model: Any, pixels_S3HW: Tensor) -> Tensor:
    """Embed an image as ViLT does, (S, 1 + P, C).

    Its own way draws an order of the patches, which no state depends on, from torch's random numbers: a run could not
    be repeated, and the meta device, where costs are counted, has no numbers to draw.
    """
    own = model.embeddings
    patches_SPC = own.patch_embeddings(pixels_S3HW).flatten(2).transpose(1, 2)
    first_S1C = own.cls_token.expand(len(patches_SPC), -1, -1)
    return torch.cat([first_S1C, patches_SPC], dim=1) + own.position_embeddings
