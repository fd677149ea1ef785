"""What a checkpoint folder of a stranger may hold: a description of an architecture, and weights that fit it.

Three rules. A configuration names no other file, address or kernel: what the encoders' libraries are given is an
allow-list of fields. Sizes are bounded before anything is built, and the decoder that a configuration describes is not
larger than the weights beside it. Weights are safetensors; a pickle, which is a program, is never opened.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .segments import SEGMENTS
from .suggest import suggest

SIZES: dict[str, tuple[int, int]] = {
    "vocab_size": (1, 1 << 24),
    "hidden_size": (1, 1 << 17),
    "intermediate_size": (1, 1 << 20),
    "num_hidden_layers": (1, 1000),
    "num_attention_heads": (1, 1 << 12),
    "max_position_embeddings": (0, 1 << 24),
    "xpos_scale_base": (1, 1 << 24),
    "image_size": (1, 1 << 13),
    "patch_size": (1, 1 << 13),
    "max_source_positions": (1, 1 << 20),
    "num_queries": (1, 1 << 14),
    "num_heads": (1, 1 << 12),
    "head_dim": (1, 1 << 14),
    "depth": (1, 1000),
    **{f"num_{modality}_tokens": (1, 1 << 14) for modality in SEGMENTS},
    "num_frames": (1, 1 << 12),
    "input_shape": (1, 1 << 23),
    "train_last_blocks": (0, 1000),
    "cross_attention_every": (1, 1000),
    "routing_layers": (0, 999),
    "cross_attention_heads": (1, 1 << 12),
    "cross_attention_head_dim": (1, 1 << 14),
}
"""Smallest and largest value of each size in a configuration; what published models have, with room to grow."""

MOST_ENTITIES = 1 << 27
"""Most ids in the tables of all kinds of entities."""

# Sizes by the names that open_clip, timm and transformers give them inside a model_config.
_ENCODER_SIZES = {
    **SIZES,
    **dict.fromkeys(("layers", "depth", "depths", "encoder_layers", "decoder_layers"), (1, 1000)),
    **dict.fromkeys(("width", "embed_dim", "dims", "head_width", "projection_dim", "d_model"), (1, 1 << 17)),
    **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim", "num_mel_bins"), (1, 1 << 20)),
    "img_size": (1, 1 << 13),
    "type_vocab_size": (1, 1 << 16),
}
_OPEN_CLIP = frozenset("embed_dim quick_gelu vision_cfg text_cfg custom_text init_logit_scale init_logit_bias".split())  # noqa: SIM905
_OPEN_CLIP_VISION = frozenset(
    "layers width head_width mlp_ratio patch_size image_size ls_init_value patch_dropout attentional_pool attn_pooler_queries "  # noqa: E501, SIM905
    "attn_pooler_heads no_ln_pre pos_embed_type final_ln_after_pool pool_type output_tokens act_kwargs norm_kwargs "
    "block_type qk_norm scaled_cosine_attn scale_heads scale_attn_inner scale_attn scale_fc".split()
)
_TIMM = frozenset(
    "model_name img_size patch_size in_chans num_classes global_pool embed_dim depth depths dims num_heads mlp_ratio "  # noqa: SIM905
    "qkv_bias qk_norm init_values class_token pos_embed no_embed_class reg_tokens pre_norm final_norm fc_norm "
    "dynamic_img_size dynamic_img_pad drop_rate pos_drop_rate patch_drop_rate proj_drop_rate attn_drop_rate "
    "drop_path_rate act_layer norm_layer window_size output_stride layers always_partition strict_img_size "
    "pretrained".split()
)
_KERNELS = ("eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention")
# Fields of any transformers configuration that make its library read, fetch or import something else.
_REACHING_OUT = frozenset(
    "quantization_config auto_map custom_pipelines pretrained_cfg pretrained_cfg_overlay checkpoint_path cache_dir "  # noqa: SIM905
    "pretrained_model_name_or_path timm_model_name hf_model_name hf_tokenizer_name backbone "
    "use_pretrained_backbone".split()
)
_LARGEST_JSON = {"tokenizer.json": 128 << 20, "model.safetensors.index.json": 64 << 20}
_OTHER_JSON = 4 << 20  # bytes
_LARGEST_TEMPLATE = 64 << 10  # bytes
_DEEPEST = 64  # levels of lists and objects
_LARGEST_HEADER = 64 << 20  # bytes of a safetensors header
_MOST_TENSORS = 200_000
_ITEM_BITS = {"BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16}
_ITEM_BITS |= {"I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64}


def check_sizes(owner: str, fields: Mapping[str, Any], bounds: Mapping[str, tuple[int, int]] = SIZES) -> None:
    """Refuse sizes that no model has.

    Raises:
        ValueError: names the field, its value and the bounds.
    """
    for name, value in fields.items():
        if name not in bounds:
            continue
        low, high = bounds[name]
        for one in value if isinstance(value, list | tuple) else [value]:
            if isinstance(one, int | float) and not isinstance(one, bool) and not low <= one <= high:
                raise ValueError(f"{owner}.{name} is {str(one)[:40]}; it may be {low:,} to {high:,}")


def check_encoder(backend: str, fields: Any) -> None:
    """Refuse whatever in an encoder's ``model_config`` is no plain description of an architecture.

    Args:
        backend: ``open_clip``, ``timm``, or a ``model_type`` of transformers.
        fields: the ``model_config``.

    Raises:
        ValueError: names the field.
    """
    where = f"the {backend} encoder's model_config"
    if not isinstance(fields, Mapping):
        raise ValueError(f"{where} is {str(fields)[:80]!r}, not a mapping of fields")
    if backend == "open_clip":
        vision = fields.get("vision_cfg")
        _allow(where, {name: value for name, value in fields.items() if name != "text_cfg"}, _OPEN_CLIP)
        if isinstance(vision, Mapping) and "timm_model_name" not in vision:  # which the tower refuses with a way
            _allow(f"{where}.vision_cfg", vision, _OPEN_CLIP_VISION)
            check_sizes(f"{where}.vision_cfg", vision, _ENCODER_SIZES)
    elif backend == "timm":
        _allow(where, fields, _TIMM)
        name = str(fields.get("model_name", ""))
        if fields.get("pretrained") or any(mark in name for mark in (":", "/", "\\")):
            raise ValueError(f"{where} may not fetch or read weights (model_name {name!r}): give vision_weights")
    else:
        for name in fields:
            if name in _REACHING_OUT and fields[name]:
                raise ValueError(f"{where}.{name}: a configuration names no other file, address or kernel")
            if isinstance(fields[name], Mapping):  # the parts of a model of image and text
                check_encoder(f"{backend}.{name}", fields[name])
        _check_kernel(where, fields)
    check_sizes(where, fields, _ENCODER_SIZES)


def check_kinds(kinds: Any) -> None:
    """Refuse kinds of entities that are no table, or tables of more rows than any model has.

    Raises:
        ValueError: names the kind.
    """
    if not isinstance(kinds, Mapping) or not kinds:
        raise ValueError(f"kinds is {str(kinds)[:40]}; give each kind its number of ids: {{user: 1000, item: 200}}")
    for kind, size in kinds.items():
        if not isinstance(size, int) or isinstance(size, bool) or not 1 <= size <= MOST_ENTITIES:
            raise ValueError(f"kinds.{str(kind)[:40]} is {str(size)[:40]}; a kind has 1 to {MOST_ENTITIES:,} ids")
    if (total := sum(kinds.values())) > MOST_ENTITIES:
        raise ValueError(f"kinds have {total:,} ids in all; there may be {MOST_ENTITIES:,}")


def check_checkpoint(folder: Path) -> None:
    """Read all that a checkpoint folder says of itself before anything is built of it.

    Raises:
        ValueError: a file that is too large or nested too deep, a pickle in the place of weights, a damaged
            safetensors file, or a configuration that the weights cannot fit.
    """
    for path in sorted(folder.glob("*.json")):
        if path.is_file():
            _check_json(path)
    for path in folder.glob("*.jinja"):
        if path.stat().st_size > _LARGEST_TEMPLATE:
            raise ValueError(f"{path} has {path.stat().st_size} bytes; a chat template has at most {_LARGEST_TEMPLATE}")
    config = read_object(folder / "config.json")
    for name, part in _objects(config, "config.json"):
        _check_kernel(name, part)
        if part.get("quantization_config"):
            raise ValueError(f"{folder}: {name}.quantization_config is not read: Kosmos weights are not quantised")
    stored = sum(_read_weights(path) for path in _weight_files(folder))
    text = config.get("text_config")
    if isinstance(text, dict):
        check_sizes("text_config", text)
        _check_fit(folder, text, stored)


@contextmanager
def readable(where: str | Path) -> Iterator[None]:
    """Make one line of whatever the libraries raise while they read what a stranger wrote; ``where`` names it.

    Raises:
        ValueError: what was raised in the block, unless that is a user's mistake or an interruption already.
    """
    try:
        yield
    except (ValueError, OSError, ModuleNotFoundError):
        raise
    except BaseException as error:  # panics of tokenizers are no Exception
        if isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit):
            raise
        raise ValueError(f"{where} cannot be read: {type(error).__name__}: {error}") from error


def check_weights(path: Path) -> None:
    """Refuse a safetensors file whose header does not fit it.

    Raises:
        ValueError: names the file and the fault.
    """
    _read_weights(path)


def _check_fit(folder: Path, text: Mapping[str, Any], stored: int) -> None:
    """A folder of 2 MB cannot need 10 TB: the decoder's matrices have at least so many numbers."""
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")
    sizes = [text.get(name) for name in names]
    if not all(isinstance(size, int) for size in sizes):
        return  # a default's or another decoder's; building says what is wrong
    vocabulary, width, inner, layers = (int(size or 0) for size in sizes)
    needed = vocabulary * width + layers * (4 * width * width + 2 * width * inner)
    if needed > 2 * stored:
        raise ValueError(
            f"{folder}: its config.json describes a decoder of {needed:,} parameters, its weights hold {stored:,}"
        )


def _weight_files(folder: Path) -> list[Path]:
    index, whole = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if whole.is_file():
        return [whole]
    if index.is_file():
        names = read_object(index).get("weight_map")
        parts = set(map(str, names.values())) if isinstance(names, dict) else set()
        if strange := sorted(name for name in parts if Path(name).name != name or not name.endswith(".safetensors")):
            raise ValueError(f"{index} names {strange[0]!r}: weights are .safetensors files of the same folder")
        if gone := sorted(name for name in parts if not (folder / name).is_file()):
            raise ValueError(f"{folder}: {gone[0]} is missing, which {index.name} names")
        return [folder / name for name in sorted(parts)]
    others = [path.name for path in sorted(folder.iterdir()) if path.suffix in (".bin", ".pt", ".pth", ".ckpt", ".pkl")]
    found = f", but {others[0]}, a pickle, which can run programs: convert it where you trust it" if others else ""
    raise ValueError(f"{folder} holds no model.safetensors{found}")


def _read_weights(path: Path) -> int:
    """How many numbers a safetensors file holds; ValueError if its header does not fit the file."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = struct.unpack("<Q", file.read(8))[0] if size >= 8 else 0
        if not 2 <= length <= min(size - 8, _LARGEST_HEADER):
            raise ValueError(f"{path} is no whole safetensors file: its header would have {length:,} bytes of {size:,}")
        raw = file.read(length)
    _check_depth(path, raw)
    try:
        header = json.loads(raw)
        header.pop("__metadata__", None)
        if len(header) > _MOST_TENSORS:
            raise ValueError(f"{len(header):,} tensors; at most {_MOST_TENSORS:,} are read")
        spans = sorted((*entry["data_offsets"], _bytes_of(entry), name) for name, entry in header.items())
        place = 0
        for begin, end, wanted, name in spans:
            if begin != place or end - begin != wanted:
                raise ValueError(f"{name} lies at bytes {begin} to {end}, where {wanted} bytes from {place} on are due")
            place = end
        if place != size - 8 - length:
            raise ValueError(f"its tensors have {place:,} bytes, the file {size - 8 - length:,}: cut off?")
        return sum(math.prod(entry["shape"]) for entry in header.values())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no whole safetensors file: {error}") from error


def _bytes_of(entry: Mapping[str, Any]) -> int:
    shape = entry["shape"]
    if not all(isinstance(side, int) and 0 <= side < 1 << 40 for side in shape):
        raise ValueError(f"a tensor of shape {str(shape)[:80]}")
    return math.prod(shape) * _ITEM_BITS[entry["dtype"]] // 8


def _check_json(path: Path) -> None:
    size, most = path.stat().st_size, _LARGEST_JSON.get(path.name, _OTHER_JSON)
    if size > most:
        raise ValueError(f"{path} has {size:,} bytes; at most {most:,} are read")
    _check_depth(path, path.read_bytes())


def _check_depth(path: Path, raw: bytes) -> None:
    """Brackets outside of strings are counted before a parser follows them."""
    if raw.count(b"[") + raw.count(b"{") <= _DEEPEST:
        return
    depth, in_string, escaped = 0, False, False
    for byte in raw:
        if in_string:
            escaped, in_string = (byte == 0x5C and not escaped), not (byte == 0x22 and not escaped)
        elif byte == 0x22:
            in_string = True
        elif byte in b"[{":
            depth += 1
            if depth > _DEEPEST:
                raise ValueError(f"{path} is nested deeper than {_DEEPEST} levels")
        elif byte in b"]}":
            depth -= 1


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file of a checkpoint; ValueError if it is too large, nested too deep, or none."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    _check_json(path)
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds a {type(found).__name__}, not an object")
    return found


def _objects(value: Any, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every object in a JSON value, with its path."""
    if isinstance(value, dict):
        yield name, value
        for key, inner in value.items():
            yield from _objects(inner, f"{name}: {key}")
    elif isinstance(value, list):
        for inner in value:
            yield from _objects(inner, name)


def _check_kernel(where: str, fields: Mapping[str, Any]) -> None:
    for name in ("attn_implementation", "_attn_implementation", "_attn_implementation_internal"):
        if (kernel := fields.get(name)) is not None and kernel not in _KERNELS:
            raise ValueError(f"{where}.{name} is {str(kernel)[:80]!r}; choose one of {', '.join(_KERNELS)}")


def _allow(where: str, fields: Mapping[str, Any], known: frozenset[str]) -> None:
    for name in fields:
        if name not in known:
            raise ValueError(
                f"{where}.{str(name)[:80]} is no field of an architecture; {suggest(str(name), sorted(known))}"
            )
