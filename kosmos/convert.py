"""Checkpoints of others: Hugging Face's Kosmos-2 (both ways) and torchscale decoders.

Tensors are only renamed, shard by shard, so a conversion there and back is equal to the bit and needs the memory of one
shard. The result is checked against the model's own tensor names and shapes before it is reported as done. Only
safetensors are read: a pickle from elsewhere can run code.

    kosmos convert --from kosmos2 SRC DST         SRC is a folder, or a name: microsoft/kosmos-2-patch14-224
    kosmos convert --to kosmos2 SRC DST
    kosmos convert --from torchscale SRC DST      SRC holds decoder.safetensors and config.json (DecoderConfig fields)
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from .atomic import open_to_umask, writing
from .configuration_kosmos import KosmosConfig
from .convert_config import hf_kosmos2_fields, kosmos2_config, torchscale_config
from .hub import fetch, is_name
from .limits import check_weights, read_object, readable
from .modeling_kosmos import KosmosForConditionalGeneration
from .plain import printable

log = logging.getLogger("kosmos")

# Hugging Face's Kosmos-2 ↔ ours; the names after these prefixes are the same.
KOSMOS2_PREFIXES = {
    "text_model.model.": "model.decoder.",
    "vision_model.model.": "model.vision_tower.encoder.",
    "image_to_text_projection.": "model.connector.",
    "text_model.lm_head.": "lm_head.",  # on disk also where it is tied, if its writer wished
}
# Tables that both sides compute; older checkpoints carry them.
DERIVED = (".embeddings.position_ids", ".embed_positions.weights", ".embed_positions._float_tensor", ".xpos.scale")
EMBEDDINGS, OUTPUT = ("text_model.model.embed_tokens.weight", "model.decoder.embed_tokens.weight"), "lm_head.weight"
SENTENCEPIECE = ("sentencepiece.bpe.model", "sentencepiece.model", "spiece.model")


def from_kosmos2(source: str | Path, target: str | Path) -> None:
    """Write the Hugging Face Kosmos-2 checkpoint in ``source`` as a Kosmos checkpoint in ``target``.

    With a SentencePiece model in ``source`` the processor is written too.

    Raises:
        FileNotFoundError: no configuration or safetensors in ``source``.
        ValueError: another model, or tensors that do not fit; names both sides.
    """
    source, target = _folders(source, target)
    config = kosmos2_config(_read_config(source, "kosmos-2"))
    with _writing(target):
        _convert_files(source, target, _from_kosmos2_name)
        _finish(config, source, target)
        _write_processor(config, source, target)


def to_kosmos2(source: str | Path, target: str | Path) -> None:
    """Write a Kosmos checkpoint of KOSMOS-2's architecture as Hugging Face's Kosmos-2.

    Raises:
        FileNotFoundError: no configuration or safetensors in ``source``.
        ValueError: the checkpoint has parts that Kosmos-2 lacks (other positions, tower or connector).
    """
    from transformers import Kosmos2Config, Kosmos2ForConditionalGeneration

    source, target = _folders(source, target)
    fields = hf_kosmos2_fields(KosmosConfig(**_read_config(source, "kosmos")))
    with _writing(target):
        _convert_files(source, target, _to_kosmos2_name)
        config = Kosmos2Config(**fields, architectures=["Kosmos2ForConditionalGeneration"], dtype=_dtype(target))
        with torch.device("meta"):
            model = Kosmos2ForConditionalGeneration(config)
        _check(model, target)
        config.save_pretrained(target)
        _copy(source, target, "generation_config.json")


def from_torchscale(source: str | Path, target: str | Path) -> None:
    """Write a torchscale decoder as a text-only Kosmos checkpoint.

    Raises:
        FileNotFoundError: ``decoder.safetensors`` or ``config.json`` is missing.
        ValueError: an architecture other than sub-LN with xPos, or tensors that do not fit; names both sides.
    """
    source, target = _folders(source, target)
    fields = _read_config(source, None)
    weights = source / "decoder.safetensors"
    if not weights.is_file():
        raise FileNotFoundError(f"{weights} does not exist; save the decoder's state dict there as safetensors")
    state = {name: tensor for name, tensor in _read(weights) if not name.endswith(DERIVED) and name != "version"}
    if "embed_tokens.weight" not in state:
        raise ValueError(f"{weights} lacks embed_tokens.weight; it holds {sorted(state)[:3]} …")
    config = torchscale_config(fields, tuple(state["embed_tokens.weight"].shape))
    output = state.pop("output_projection.weight", None)
    renamed = {f"model.decoder.{name}": tensor for name, tensor in state.items()}
    if output is not None:
        renamed[OUTPUT] = output
    with _writing(target):
        with writing(target):
            save_file(renamed, target / "model.safetensors", {"format": "pt"})
        open_to_umask(target)
        _finish(config, source, target)


def _from_kosmos2_name(name: str) -> str | None:
    if name.endswith(DERIVED):
        return None
    for theirs, ours in KOSMOS2_PREFIXES.items():
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    raise ValueError(f"tensor {name!r} is none of Kosmos-2's; expected names starting with {list(KOSMOS2_PREFIXES)}")


def _to_kosmos2_name(name: str) -> str | None:
    for theirs, ours in KOSMOS2_PREFIXES.items():
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    raise ValueError(f"tensor {name!r} has no place in Kosmos-2")


@contextlib.contextmanager
def _writing(target: Path) -> Iterator[None]:
    """Make ``target``, and remove it again if the conversion fails."""
    target.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        shutil.rmtree(target)
        raise


def _convert_files(source: Path, target: Path, rename: Callable[[str], str | None]) -> None:
    """Rename all tensors of all shards; a name that maps to None is dropped."""
    places, size = {}, 0
    files = _weight_files(source)
    for file in files:
        renamed = {new: tensor for name, tensor in _read(file) if (new := rename(name)) is not None}
        with writing(target):
            save_file(renamed, target / file.name, {"format": "pt"})
        open_to_umask(target)
        places.update(dict.fromkeys(renamed, file.name))
        size += sum(tensor.nbytes for tensor in renamed.values())
    if len(files) > 1 or files[0].name != "model.safetensors":
        index = {"metadata": {"total_size": size}, "weight_map": places}
        (target / "model.safetensors.index.json").write_text(json.dumps(index, indent=2, sort_keys=True))


def _weight_files(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        places = read_object(index).get("weight_map")
        names = sorted(set(map(str, places.values()))) if isinstance(places, dict) else []
        if strange := [name for name in names if Path(name).name != name] or ([] if names else ["no file"]):
            raise ValueError(f"{index} names {strange[0]!r}: weights are files of the same folder")
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise FileNotFoundError(f"{folder}: the index names {missing}, which are not there")
        return [folder / name for name in names]
    if not (folder / "model.safetensors").is_file():
        raise FileNotFoundError(f"{folder} holds no model.safetensors (pickles are not read: save as safetensors)")
    return [folder / "model.safetensors"]


def _read(file: Path) -> Iterator[tuple[str, Tensor]]:
    try:
        check_weights(file)
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - not a mapping
                yield name, tensors.get_tensor(name)
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"{file} is not a readable safetensors file: {error}") from error


def _folders(source: str | Path, target: str | Path) -> tuple[Path, Path]:
    source, target = Path(source), Path(target)
    if is_name(source):
        source = fetch(str(source))
    if not source.is_dir():
        raise FileNotFoundError(f"{source} is not a folder; give the checkpoint's folder")
    if source.resolve() == target.resolve():
        raise ValueError(f"SRC and DST are the same folder {source}; give another DST")
    if target.exists() and any(target.iterdir()):
        raise ValueError(f"{target} is not empty; give a new folder")
    return source, target


def _read_config(folder: Path, model_type: str | None) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; SRC must hold the model's configuration")
    try:
        fields = read_object(path)
    except ValueError as error:
        raise ValueError(f"{path} is not JSON of a model: {error}") from error
    if model_type is not None and fields.get("model_type") != model_type:
        raise ValueError(f"{path} describes model_type {fields.get('model_type')!r}, expected {model_type!r}")
    return {name: value for name, value in fields.items() if name not in ("model_type", "transformers_version")}


def _finish(config: KosmosConfig, source: Path, target: Path) -> None:
    """Check the written tensors against the model and write the configuration."""
    with torch.device("meta"):
        model = KosmosForConditionalGeneration(config)
    _check(model, target)
    config.architectures, config.dtype = ["KosmosForConditionalGeneration"], _dtype(target)
    config.save_pretrained(target)
    _copy(source, target, "generation_config.json")


def _check(model: PreTrainedModel, target: Path) -> None:
    """Refuse what was written unless it is the model's tensors; a tied output matrix may be there or not."""
    files: dict[str, Path] = {}
    written: dict[str, tuple[int, ...]] = {}
    for file in _weight_files(target):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - not a mapping
                files[name], written[name] = file, tuple(tensors.get_slice(name).get_shape())
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    outputs = [name for name in wanted if name.endswith(OUTPUT)]
    if model.config.tie_word_embeddings:
        wanted = {name: shape for name, shape in wanted.items() if name not in outputs or name in written}
    missing, extra = sorted(wanted.keys() - written.keys()), sorted(written.keys() - wanted.keys())
    shapes = [f"{n}: {written[n]} against {wanted[n]}" for n in wanted if n in written and written[n] != wanted[n]]
    if missing or extra or shapes:
        raise ValueError(
            f"the checkpoint does not fit {type(model).__name__} as its config.json describes it: {len(missing)} "
            f"tensors missing {missing[:3]}, {len(extra)} left over {extra[:3]}, {len(shapes)} of other shape "
            f"(checkpoint, model) {shapes[:3]}"
        )
    tied = [name for name in (*outputs, *EMBEDDINGS) if name in written] if model.config.tie_word_embeddings else []
    if len(tied) == 2 and not torch.equal(*(dict(_read(files[name]))[name] for name in tied)):
        raise ValueError(f"config.json ties input and output embeddings, but {tied[0]} differs from {tied[1]}")


def _dtype(folder: Path) -> torch.dtype:
    with safe_open(_weight_files(folder)[0], framework="pt") as tensors:
        return tensors.get_tensor(next(iter(tensors.keys()))).dtype


def _copy(source: Path, target: Path, name: str) -> None:
    if (source / name).is_file():
        shutil.copyfile(source / name, target / name)


def _write_processor(config: KosmosConfig, source: Path, target: Path) -> None:
    """Build the processor from the checkpoint's SentencePiece model, where it has one."""
    model = next((source / name for name in SENTENCEPIECE if (source / name).is_file()), None)
    if model is None:
        log.info("%s has no SentencePiece model: no processor was written", source)
        return
    from .image_processing_kosmos import KosmosImageProcessor
    from .processing_kosmos import KosmosProcessor
    from .tokenization_kosmos import IMAGE_SLOT, tokenizer_from_sentencepiece

    tokenizer = tokenizer_from_sentencepiece(model, grounding=True)
    slot = tokenizer.convert_tokens_to_ids(IMAGE_SLOT)
    if slot != config.image_token_id:
        raise ValueError(f"{model} makes {slot} tokens, the embeddings have {config.image_token_id} rows")
    # KOSMOS-2's own demo resizes to a square
    images = KosmosImageProcessor(image_size=config.vision_config.image_size, crop="none")
    processor = KosmosProcessor(images, tokenizer, config.num_image_tokens, config.text_config.max_position_embeddings)
    processor.save_pretrained(target)


READERS = {"kosmos2": from_kosmos2, "torchscale": from_torchscale}
WRITERS = {"kosmos2": to_kosmos2}


def main(argv: list[str]) -> int:
    """``kosmos convert``."""
    parser = argparse.ArgumentParser(prog="kosmos convert", description=__doc__.split("\n")[0])
    way = parser.add_mutually_exclusive_group(required=True)
    way.add_argument(
        "--from", dest="reader", choices=READERS, help="SRC is a checkpoint of this kind, DST becomes ours"
    )
    way.add_argument("--to", dest="writer", choices=WRITERS, help="SRC is ours, DST becomes a checkpoint of this kind")
    parser.add_argument(
        "source", metavar="SRC", help="folder to read, of ours a run directory too, or a name of the hub"
    )
    parser.add_argument("target", metavar="DST", help="new folder to write")
    arguments = parser.parse_args(argv)
    from .loading import find_checkpoint, quiet_saving
    from .model_card import model_card

    source, target = Path(arguments.source), Path(arguments.target)
    if arguments.reader:
        with readable(source), quiet_saving():
            READERS[arguments.reader](source, target)
    else:
        source = find_checkpoint(source)
        with readable(source), quiet_saving():
            WRITERS[arguments.writer](source, target)
    (target / "README.md").write_text(model_card(target, source=source), encoding="utf-8")
    print(f"wrote {printable(arguments.target)}")
    return 0
