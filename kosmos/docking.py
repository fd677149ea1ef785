"""From a published causal language model, by name or file, to a Kosmos model that speaks from the first step.

``find_language_model`` turns a folder, a GGUF file or a name of the hub into a folder with ``config.json``, tokenizer
and safetensors; ``take_processor`` appends our special tokens to its tokenizer and keeps its chat template;
``take_weights`` gives its weights to a Kosmos model and proves on a few tokens that both compute the same.

Nothing is unpickled. A GGUF file is converted once, in fp32, into ``~/.cache/kosmos/decoders`` (``KOSMOS_CACHE``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken
from torch import Tensor

from .hub import cache, fetch, is_name, made_once, refuse_pickles
from .image_processing_kosmos import KosmosImageProcessor
from .loading import packaged, quiet_saving
from .processing_kosmos import KosmosProcessor, with_parts
from .tokenization_kosmos import IMAGE_BEGIN, IMAGE_END, OWN_TOKENS

TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")


def find_language_model(where: str | Path, revision: str | None = None) -> Path:
    """Return a folder with the config, tokenizer and safetensors of the language model that ``where`` names.

    Args:
        where: a folder, a GGUF file or the folder of one, ``package:NAME/FILE`` of an installed package, or a name of
            the hub such as ``HuggingFaceTB/SmolLM2-135M-Instruct``.
        revision: branch, tag or commit on the hub.

    Raises:
        FileNotFoundError: nothing is there; says which file is missing and where to put it.
        ValueError: a GGUF file that transformers cannot read, or weights as pickles only.
    """
    path = packaged(where).expanduser()
    if path.suffix == ".gguf" and path.is_file():
        return _converted(path)
    if path.is_dir():
        files = sorted(path.glob("*.gguf"))
        if len(files) == 1 and not (path / "config.json").is_file():
            return _converted(files[0])
        return _check_folder(path, str(where))
    if not is_name(where):
        raise FileNotFoundError(f"{where}: no such folder or GGUF file, and no name of the hub (OWNER/MODEL)")
    needs = ("config.json", "tokenizer.json", "model.safetensors")
    return _check_folder(fetch(str(where), revision, needs), str(where))


def _check_folder(folder: Path, where: str) -> Path:
    """Raise unless all that is needed lies in the folder."""
    missing = "config.json" if not (folder / "config.json").is_file() else None
    if missing is None and not any((folder / name).is_file() for name in TOKENIZERS):
        missing = "tokenizer.json"
    if missing is None and not any(folder.glob("*.safetensors")):
        refuse_pickles(where, [file.name for file in folder.iterdir()])
        missing = "model.safetensors"
    if missing is not None:
        raise FileNotFoundError(f"{where}: {missing} is missing; put it into {folder}")
    return folder


def _converted(file: Path) -> Path:
    """Return the folder that a GGUF file was, or now is, converted to.

    Raises:
        ValueError: transformers cannot read the file, or ``gguf`` is not installed.
    """
    return made_once(cache() / "decoders" / f"{file.stem}-{_fingerprint(file)}", lambda new: _convert_gguf(file, new))


def _convert_gguf(file: Path, folder: Path) -> None:
    """Write a GGUF file as safetensors of fp32 into ``folder``."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    given: dict[str, Any] = {
        "pretrained_model_name_or_path": str(file.parent),
        "gguf_file": file.name,
        "local_files_only": True,
    }
    with _one_line(f"{file} cannot be read as a GGUF file", install="gguf"), quiet_saving():
        model: Any = AutoModelForCausalLM.from_pretrained(**given, dtype=torch.float32)
        model.hf_quantizer = None  # its tensors are plain ones by now
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        model.save_pretrained(folder)
        AutoTokenizer.from_pretrained(**given).save_pretrained(folder)


@contextmanager
def _one_line(what: str, install: str | None = None) -> Iterator[None]:
    """Turn what transformers raises about a file into one line of ours."""
    try:
        yield
    except ImportError as error:
        raise ValueError(f"{what}: pip install {install or error.name}") from error
    except Exception as error:  # readers of broken files raise whatever they stumble over
        first = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(f"{what}: {first[0]}") from error


def _fingerprint(file: Path) -> str:
    """A name for the content: size, and both ends."""
    size, end = file.stat().st_size, 2**20
    with file.open("rb") as opened:
        digest = hashlib.sha256(f"{size}".encode() + opened.read(end))
        opened.seek(max(0, size - end))
        digest.update(opened.read(end))
    return digest.hexdigest()[:12]


def read_config(folder: Path) -> Any:
    """Return the language model's config, proved on the meta device to be one that can be our decoder.

    Raises:
        ValueError: transformers does not know it, or it is no causal language model.
    """
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    from .transformers_decoder import TransformersDecoder

    with _one_line(f"{folder}/config.json cannot be read"):
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ValueError(f"{folder}: {config.model_type} is no causal language model of transformers")
    with torch.device("meta"):
        TransformersDecoder(config)
    return config


def take_tokenizer(folder: Path, extra_tokens: Sequence[str] = ()) -> Any:
    """Return the language model's tokenizer with our special tokens, then ``extra_tokens``, appended.

    Without a BOS or padding token its EOS stands for them, as in GPT-2.

    Raises:
        ValueError: no fast tokenizer, no EOS, or more tokens than the embeddings have rows.
    """
    tokenizer = _read_tokenizer(folder)
    rows = read_config(folder).vocab_size
    if len(tokenizer) > rows:
        raise ValueError(
            f"{folder}: the tokenizer has {len(tokenizer)} tokens, but the embeddings {rows} rows; they are not of the "
            "same model"
        )
    if not tokenizer.is_fast or tokenizer.eos_token is None:
        raise ValueError(f"{folder}: the tokenizer is not a fast one (tokenizer.json), or has no EOS token")
    ours = [IMAGE_BEGIN, IMAGE_END, *OWN_TOKENS, *extra_tokens]
    tokenizer.add_special_tokens(
        {"extra_special_tokens": [AddedToken(token, normalized=False, special=True) for token in ours]},
        replace_extra_special_tokens=False,
    )
    tokenizer.bos_token = tokenizer.bos_token or tokenizer.eos_token
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    tokenizer.padding_side = "left"
    return tokenizer


def _read_tokenizer(folder: Path) -> Any:
    """The language model's tokenizer as it was published."""
    from transformers import AutoTokenizer

    with _one_line(f"{folder}: the tokenizer cannot be read"):
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)


def take_processor(
    folder: Path,
    image_processor: KosmosImageProcessor | None = None,
    num_image_tokens: int = 64,
    extra_tokens: Sequence[str] = (),
    **fields: Any,
) -> KosmosProcessor:
    """Return a processor over the language model's tokenizer; messages are written by its own chat template.

    A base model without a template gets our questions and answers, which end with their line.

    Args:
        folder: of the language model, see ``find_language_model``.
        image_processor: how pictures are resized and normalised for the vision tower; 224 pixels a side by default.
        num_image_tokens: Q, the number of places that one image takes.
        extra_tokens: special tokens of objectives, appended last.
        **fields: further arguments of ``KosmosProcessor``.
    """
    tokenizer = take_tokenizer(folder, extra_tokens)
    template = tokenizer.chat_template
    if template is not None:
        template = with_parts(template["default"] if isinstance(template, dict) else template)
    tokenizer.chat_template = None  # the processor's: one of them is enough
    ends: dict[str, Any] = {
        "answer_ends": _end_tokens(folder, tokenizer),
        "turn_end": "line" if template is None else "eos",
    }
    return KosmosProcessor(
        image_processor or KosmosImageProcessor(),
        tokenizer,
        num_image_tokens,
        chat_template=template,
        **ends,
        **fields,
    )


def _end_tokens(folder: Path, tokenizer: Any) -> list[str]:
    """The tokens that end an answer: the tokenizer's EOS and those that the model's own rules of writing name."""
    from transformers import GenerationConfig

    ends = [tokenizer.eos_token]
    if (folder / "generation_config.json").is_file():
        found = GenerationConfig.from_pretrained(folder).eos_token_id
        ends += tokenizer.convert_ids_to_tokens([] if found is None else [found] if isinstance(found, int) else found)
    return list(dict.fromkeys(ends))


def take_weights(model: Any, folder: Path) -> None:
    """Give a Kosmos model, whose decoder is of this kind, the language model's weights.

    Rows of the embeddings for tokens that were appended begin at the mean of the others and a tenth of their spread:
    such a token is never likelier than a usual one, and no two are the same.

    Args:
        model: a ``KosmosForConditionalGeneration``; its vocabulary may be larger than the language model's.
        folder: of the language model.

    Raises:
        ValueError: the weights are incomplete, or both models do not compute the same.
    """
    from transformers import AutoModelForCausalLM

    with _one_line(f"{folder}: the weights cannot be read"):
        found: Any = AutoModelForCausalLM.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, dtype=torch.float32, output_loading_info=True
        )
    bare, report = found
    lacking = sorted(report["missing_keys"]) + sorted(str(key) for key in report["mismatched_keys"])
    if lacking:
        raise ValueError(f"{folder}: {len(lacking)} tensors are missing or of another shape (first: {lacking[0]})")
    bare, decoder = bare.eval(), model.model.decoder
    known = len(_read_tokenizer(folder))
    weights = {f"model.{name}": tensor for name, tensor in bare.base_model.state_dict().items()}
    own, embedding = decoder.state_dict(), decoder.embedding_name()
    weights[embedding] = _with_new_rows(weights[embedding], len(own[embedding]), known)
    decoder.load_state_dict(weights)
    if not model.config.tie_word_embeddings:
        head = bare.get_output_embeddings().weight.data
        model.lm_head.weight.data.copy_(_with_new_rows(head, len(model.lm_head.weight), known))
    _prove(model, bare, known, folder)


@torch.no_grad()
def _with_new_rows(weight_VD: Tensor, rows: int, known: int) -> Tensor:
    """Return the matrix with so many rows, of which those behind the ``known`` ones begin anew."""
    old_ND = weight_VD[:known].float()
    mean_D, spread_D = old_ND.mean(0), old_ND.std(0)
    made_VD = mean_D + 0.1 * spread_D * torch.randn(rows, weight_VD.shape[1])
    made_VD[:known] = weight_VD[:known]
    return made_VD.to(weight_VD.dtype)


@torch.no_grad()
def _prove(model: Any, bare: Any, known: int, folder: Path) -> None:
    """Raise ValueError unless both models give a few tokens the same logits: soft caps, scales, biases would show."""
    ids_BT = torch.arange(0, known, max(1, known // 16))[None, :16]
    training = model.training
    ours, theirs = model.eval()(input_ids=ids_BT).logits, bare(input_ids=ids_BT).logits
    model.train(training)
    gap = (ours[..., :known] - theirs[..., :known]).abs().max()
    if not gap <= 1e-4 * max(1.0, float(theirs[..., :known].abs().max())):
        raise ValueError(
            f"{folder}: a {bare.config.model_type} does more than multiply its hidden states with the output matrix "
            f"(its logits differ from that by {float(gap):.3g}: a soft cap, scale or bias), which Kosmos does not"
        )
