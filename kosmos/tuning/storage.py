"""A tuning on disk: what learned, in PEFT's layout, and from which model it must start.

    adapter_model.safetensors    PEFT's names, ``base_model.model.`` in front; of a prompt its ``prompt_embeddings``
    adapter_config.json          PEFT's configuration, so that PEFT itself reads the folder; ours have one as well
    tuning.json                  the ``tuning:`` settings, and the base by its path and a fingerprint of its weights
    generation_config.json and the processor's files             the rules of writing that it was trained with

An adapter that PEFT or TRL wrote for a Kosmos model (without ``tuning.json``) is read too, its base not checked.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import GenerationConfig

from ..atomic import open_to_umask, writing
from ..limits import check_weights, read_object, readable
from ..loading import find_folder
from ..settings import from_dict
from .checks import check_described, check_fit
from .methods import Attached, activate_places, attach, attachments, plain_name, prompt_encoder, prompts_if_any
from .settings import OWN_METHODS, PEFT_METHODS, PROMPT_METHODS, Tuning

WEIGHTS, CONFIG, SETTINGS = "adapter_model.safetensors", "adapter_config.json", "tuning.json"
PREFIX = "base_model.model."
PEFT_TYPES = {
    "LORA": "lora",
    "IA3": "ia3",
    "PREFIX_TUNING": "prefix",
    "PROMPT_TUNING": "prompt",
    "P_TUNING": "p_tuning",
}


@dataclass
class Saved:
    """A tuning that was read from a folder."""

    folder: Path
    tuning: Tuning
    config: Any
    """PEFT's configuration; of our own methods None."""
    base: str
    fingerprint: str | None
    """Of the base's weights; None where somebody else wrote the folder."""
    tensors: dict[str, Tensor]
    fused: list[Tuning] = field(default_factory=list)

    def check(self, model: Any, method: str | None = None) -> None:
        """Refuse a model that it was not trained on.

        Raises:
            ValueError: another base, with both fingerprints, or another method than ``method``.
        """
        if method is not None and self.tuning.method != method:
            raise ValueError(
                f"{self.folder} holds a {self.tuning.method}, not an {method}: adapters alone can be fused"
            )
        if method is not None and self.tuning.also:
            raise ValueError(f"{self.folder} also trained {self.tuning.also}: adapters to be fused must not")
        found = fingerprint_of(model)
        if self.fingerprint is not None and found is not None and found != self.fingerprint:
            raise ValueError(
                f"{self.folder} was trained on another model: its base {self.base} has fingerprint {self.fingerprint}, "
                f"{model.name_or_path} has {found}"
            )

    @torch.no_grad()
    def fill(self, model: Any, name: str) -> None:
        """Write the tensors to what was attached under ``name``; of the model's own parameters keep them aside.

        Raises:
            ValueError: tensors are missing, left over or of another shape.
        """
        wanted: dict[str, Any] = owned(model, name)
        rest = dict(self.tensors)
        if self.tuning.method in PROMPT_METHODS:
            prompts = prompts_if_any(model)
            assert prompts is not None
            wanted = {"prompt_embeddings": prompts.encoders[name].weight}
        for key, parameter in wanted.items():
            value = rest.pop(key, None)
            if value is None or value.shape != parameter.shape:
                found = "is missing" if value is None else f"is {tuple(value.shape)}"
                raise ValueError(f"{self.folder}: {key} {found}, the model takes {tuple(parameter.shape)}")
            parameter.data = value.to(model.device, model.dtype)
        own = {plain_name(key): parameter for key, parameter in model.named_parameters()}
        for key, value in rest.items():
            parameter = own.get(key.removeprefix(PREFIX))
            if parameter is None or parameter.shape != value.shape:
                raise ValueError(f"{self.folder}: {key} {tuple(value.shape)} is no parameter of the model")
            attachments(model)[name].also[key.removeprefix(PREFIX)] = value.to(model.device, model.dtype)


def owned(model: Any, name: str) -> dict[str, torch.nn.Parameter]:
    """Key in the file → parameter, of what was added under ``name``, prompts apart."""
    found = {saved_key(key, name): parameter for key, parameter in model.named_parameters()}
    return {key: parameter for key, parameter in found.items() if key is not None}


def saved_key(key: str, name: str) -> str | None:
    """The key that PEFT gives a parameter of adapter ``name`` in a file; None: it is none of its.

    The adapter's name is left out; an adapter of a fusion keeps its number.
    """
    parts = key.split(".")
    for place, part in enumerate(parts[:-1]):
        owner = parts[place + 1]
        if part.startswith(("lora_", "ia3_")):
            rest = [] if part == "lora_magnitude_vector" else parts[place + 2 :]
            return PREFIX + ".".join([*parts[: place + 1], *rest]) if owner == name else None
        if part in ("adapters", "fusions") and "adapter_places" in parts[:place]:
            number = owner.removeprefix(f"{name}_")
            if owner != name and (number == owner or not number.isdecimal()):
                return None
            return PREFIX + ".".join([*parts[: place + 1], *([] if owner == name else [number]), *parts[place + 2 :]])
    return None


def save_adapter(
    model: Any, folder: str | Path, weights: Mapping[str, Tensor] | None = None, name: str = "default"
) -> None:
    """Write the tuning ``name`` to a folder.

    Args:
        model: what it is attached to.
        weights: the model's whole state dict, where its own tensors are partitioned.
    """
    folder, record = Path(folder), attachments(model)[name]
    folder.mkdir(parents=True, exist_ok=True)
    state = dict(model.state_dict() if weights is None else weights)
    tensors = {key: value for own, value in state.items() if (key := saved_key(own, name)) is not None}
    if record.tuning.method in PROMPT_METHODS:
        tensors = {"prompt_embeddings": _virtual(model, record, state, name)}
    plain = {plain_name(key): value for key, value in state.items()}
    tensors |= {PREFIX + key: plain[key] for key in record.also}
    with writing(folder):
        save_file({key: value.detach().cpu().contiguous() for key, value in tensors.items()}, folder / WEIGHTS)
    open_to_umask(folder, below=False)
    described = _peft_config(record)
    (folder / CONFIG).write_text(json.dumps(described, indent=2, sort_keys=True), encoding="utf-8")
    settings = {
        "tuning": record.tuning.asked(),
        "base": record.base,
        "base_fingerprint": fingerprint_of(model),
        "fused": [tuning.asked() for tuning in record.fused],
    }
    (folder / SETTINGS).write_text(json.dumps(settings, indent=2), encoding="utf-8")
    model.generation_config.save_pretrained(folder)


def _virtual(model: Any, record: Attached, state: dict[str, Tensor], name: str) -> Tensor:
    """What a prompt's encoder makes, (p, D) or (p, 2 L D), of whole weights: those of the model may be partitioned."""
    start = f"model.decoder.prompts.encoders.{name}."
    own = {key.removeprefix(start): value.cpu() for key, value in state.items() if key.startswith(start)}
    embedding = torch.nn.Embedding(model.config.get_text_config().vocab_size, record.config.token_dim, device="meta")
    if record.tuning.method == "prompt" or record.config.inference_mode:
        return own["embedding.weight" if "embedding.weight" in own else "weight"]
    encoder = prompt_encoder(record.config, record.tuning, embedding).to(next(iter(own.values())).dtype)
    encoder.load_state_dict(own)
    with torch.no_grad():
        return encoder(torch.arange(record.tuning.tokens)[None])[0]


def _peft_config(record: Attached) -> dict[str, Any]:
    if record.config is None:
        return {"peft_type": f"KOSMOS_{record.tuning.method.upper()}", "base_model_name_or_path": record.base}
    described = record.config.to_dict() | {"inference_mode": True, "base_model_name_or_path": record.base}
    if record.also and record.tuning.method in PEFT_METHODS:
        described["modules_to_save"] = sorted({key.rpartition(".")[0] for key in record.also})
    return {key: sorted(value) if isinstance(value, set) else value for key, value in described.items()}


def find_adapter(where: str | Path) -> Path:
    """The adapter folder meant by ``where``: itself, or the latest checkpoint of a run of ``tuning:``.

    Raises:
        FileNotFoundError: there is none.
    """
    found = find_folder(where, CONFIG)
    if found is None:
        raise FileNotFoundError(f"{where} is no adapter: neither {CONFIG} nor checkpoints/latest with one is in it")
    return found


def read_adapter(where: str | Path) -> Saved:
    """Read a tuning from an adapter folder or a run.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is of a method that is not known here, or damaged.
    """
    folder = find_adapter(where)
    with readable(folder):
        return _read_adapter(folder)


def _read_adapter(folder: Path) -> Saved:
    described = read_object(folder / CONFIG)
    kind = str(described.get("peft_type"))
    settings = read_object(folder / SETTINGS) if (folder / SETTINGS).is_file() else {}
    if not settings and kind not in PEFT_TYPES:
        raise ValueError(f"{folder}: method {kind} is not known here; there are {', '.join(PEFT_TYPES)}")
    check_described(folder, described)
    tuning = from_dict(Tuning, settings["tuning"], f"{folder}: ") if settings else _foreign(PEFT_TYPES[kind], described)
    if not (folder / WEIGHTS).is_file():
        raise FileNotFoundError(f"{folder}: {WEIGHTS} is missing")
    check_weights(folder / WEIGHTS)
    with safe_open(folder / WEIGHTS, framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - a safetensors handle is no dict
    check_fit(folder, tuning, {side for tensor in tensors.values() for side in tensor.shape})
    config = None
    if tuning.method not in OWN_METHODS:
        from peft import PeftConfig

        config = PeftConfig.from_pretrained(str(folder))
        config.inference_mode = True
        if tuning.method in PEFT_METHODS:
            config.modules_to_save = None  # these values are swapped in place, see use()
    base = settings.get("base") or described.get("base_model_name_or_path") or ""
    fused = [from_dict(Tuning, asked, f"{folder}: ") for asked in settings.get("fused", [])]
    return Saved(folder, tuning, config, base, settings.get("base_fingerprint"), tensors, fused)


def _foreign(method: str, described: dict[str, Any]) -> Tuning:
    """The settings of an adapter that PEFT wrote, as far as they are needed to attach it."""
    if method in PROMPT_METHODS:
        return Tuning(method, tokens=described["num_virtual_tokens"])  # type: ignore[arg-type]
    return Tuning(method, rank=described["r"]) if method == "lora" else Tuning(method)  # type: ignore[arg-type]


def load_adapter(model: Any, where: str | Path, name: str | None = None) -> str:
    """Attach a saved tuning to a model, ready to answer with, and make it active; return what it is called there.

    Args:
        model: a ``KosmosForConditionalGeneration`` that it was trained on.
        where: adapter folder or run.
        name: default the run's; dots, which names of modules cannot hold, become ``_``.

    Raises:
        FileNotFoundError, ValueError: no adapter there, or one of another model.
    """
    saved = read_adapter(where)
    saved.check(model)
    name = (name or _run_name(saved.folder)).replace(".", "_")
    training = model.training
    with readable(saved.folder):
        record = attach(model, saved.tuning, saved.base, name, saved.config, saved.fused)
        record.also = {}
        saved.fill(model, name)
        if (saved.folder / "generation_config.json").is_file():
            record.rules = GenerationConfig.from_pretrained(saved.folder)
        record.turn_end = turn_end_in(saved.folder)
    model.requires_grad_(False).train(training)
    use(model, name)
    return name


def turn_end_in(folder: str | Path) -> str | None:
    """Return how answers end by the processor in a folder, ``line`` or ``eos``; None without a processor."""
    file = Path(folder) / "processor_config.json"
    return str(read_object(file).get("turn_end", "line")) if file.is_file() else None


def _run_name(folder: Path) -> str:
    """``runs/mine`` for ``runs/mine/checkpoints/step-000100``: its last part."""
    resolved = folder.resolve()
    return resolved.parent.parent.name if resolved.parent.name == "checkpoints" else resolved.name


@torch.no_grad()
def use(model: Any, name: str | None) -> None:
    """Make a loaded tuning the active one; None: the model as it was before.

    Raises:
        ValueError: no such tuning.
    """
    known = attachments(model)
    if name is not None and name not in known:
        raise ValueError(f"no adapter {name!r}; there are: {', '.join(known) or 'none'}")
    record = known[name] if name is not None else None
    _switch_layers(model, name if record is not None and record.tuning.method in PEFT_METHODS else None)
    if (prompts := prompts_if_any(model)) is not None:
        prompts.active = name if name is not None and name in prompts.encoders else None
    activate_places(model, name)
    own = {plain_name(key): parameter for key, parameter in model.named_parameters()}
    for key, value in model.own_values.items():
        own[key].copy_(value)
    for key, value in (record.also if record is not None else {}).items():
        model.own_values.setdefault(key, own[key].clone())
        own[key].copy_(value)
    if not hasattr(model, "own_rules"):
        model.own_rules = model.generation_config
    model.generation_config = model.own_rules if record is None or record.rules is None else record.rules


def _switch_layers(model: Any, name: str | None) -> None:
    """PEFT's layers: those of ``name`` on, all others off."""
    if not any(record.tuning.method in PEFT_METHODS for record in attachments(model).values()):
        return
    from peft.tuners.tuners_utils import BaseTunerLayer

    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            module.enable_adapters(name is not None)
            if name is not None:
                module.set_adapter([name], inference_mode=True)


def fingerprint_of(model: Any) -> str | None:
    """The fingerprint of the weights that a model was loaded from; None if they are in no local folder."""
    folder = Path(str(getattr(model, "name_or_path", "") or ""))
    return fingerprint(folder.resolve()) if folder.is_dir() and any(folder.glob("*.safetensors")) else None


def fingerprint(folder: Path) -> str:
    """A hash of every tensor in a checkpoint folder: name, type, shape and values, however the files are cut."""
    stamps = tuple(
        (file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in sorted(folder.glob("*.safetensors"))
    )
    return _fingerprint(folder, stamps)


@lru_cache(maxsize=32)
def _fingerprint(folder: Path, stamps: tuple[tuple[str, int, int], ...]) -> str:
    digests: dict[str, bytes] = {}
    for file_name, *_ in stamps:
        with safe_open(folder / file_name, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 - a safetensors handle is no dict
                value = file.get_tensor(key)
                raw = value.contiguous().reshape(-1).view(torch.uint8).numpy()
                head = f"{key} {value.dtype} {tuple(value.shape)}".encode()
                digests[key] = hashlib.blake2b(head + hashlib.blake2b(raw.tobytes()).digest(), digest_size=16).digest()
    return hashlib.blake2b(b"".join(digests[key] for key in sorted(digests)), digest_size=8).hexdigest()


def load_tuned(model: Any, adapters: list[str | Path]) -> list[str]:
    """Attach several saved tunings; the first is active. Returns their names."""
    names = []
    for where in adapters:
        name, count = _run_name(find_adapter(where)).replace(".", "_"), 2
        while name in attachments(model):
            name, count = f"{name.removesuffix(f'-{count - 1}')}-{count}", count + 1
        names.append(load_adapter(model, where, name))
    if names:
        use(model, names[0])
    return names
