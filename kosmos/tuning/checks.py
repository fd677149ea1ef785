"""What an adapter folder of a stranger may say: no module, file or model to be read, and sizes that its weights have.

PEFT's configuration has fields that import a module (``megatron_core``), read a file (CorDA's ``covariance_file``) or
change the base's weights before the adapter's are there; :data:`REFUSED` names them. Its patterns are regular
expressions, of which those that take exponential time are refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..limits import check_sizes

REFUSED = (
    *("megatron_config", "loftq_config", "eva_config", "corda_config", "lora_ga_config", "velora_config"),
    *("monteclora_config", "arrow_config", "kasa_config", "use_bdlora", "layer_replication", "target_parameters"),
    *("trainable_token_indices", "alora_invocation_tokens", "use_qalora", "tokenizer_kwargs"),
)
"""Fields of PEFT's configuration that must not be set."""
INITIAL_WEIGHTS = (None, True, False, "gaussian", "orthogonal")
"""``init_lora_weights`` that leave the base as it is."""
SIZES = {
    **dict.fromkeys(("r", "rank"), (1, 1 << 14)),
    **dict.fromkeys(("num_virtual_tokens", "tokens"), (1, 1 << 14)),
    **dict.fromkeys(("encoder_hidden_size", "encoder_size", "token_dim"), (1, 1 << 17)),
    **dict.fromkeys(("num_layers", "encoder_num_layers", "num_attention_heads", "num_modules"), (0, 1 << 12)),
    "reduction": (1, 1 << 17),
}
_LONGEST_PATTERN = 1000  # characters
_REPEATED_REPEAT = re.compile(r"[+*}]\)*[+*{]|\([^()]*[+*|][^()]*\)[+*{]")


def check_described(folder: Path, described: Mapping[str, Any]) -> None:
    """Refuse a PEFT configuration that does more than to describe an adapter.

    Raises:
        ValueError: names the field.
    """
    for name in REFUSED:
        if described.get(name):
            raise ValueError(f"{folder}: {name} is set in adapter_config.json; such adapters are not read")
    initial = described.get("init_lora_weights")
    if not isinstance(initial, str | bool | None) or initial not in INITIAL_WEIGHTS:
        raise ValueError(
            f"{folder}: init_lora_weights {str(initial)[:40]!r} changes the base's weights; save the adapter as an "
            "ordinary LoRA (PEFT: path_initial_model_for_weight_conversion)"
        )
    for name, pattern in _patterns(described):
        if len(pattern) > _LONGEST_PATTERN or _REPEATED_REPEAT.search(pattern):
            raise ValueError(f"{folder}: {name} holds the pattern {pattern[:60]!r}, which could be matched for ever")
    check_sizes(str(folder), described, SIZES)
    ranks = described.get("rank_pattern") or {}
    check_sizes(str(folder), {"r": list(ranks.values()) if isinstance(ranks, Mapping) else [0]}, SIZES)


def check_fit(folder: Path, tuning: Any, sides: set[int]) -> None:
    """Refuse a rank or a number of virtual tokens that no tensor of the file has: it would be built first.

    Args:
        folder: for the message.
        tuning: the settings.
        sides: of all tensors in the file.

    Raises:
        ValueError: names the size.
    """
    check_sizes(str(folder), vars(tuning), SIZES)
    wanted = {"lora": "rank", "prompt": "tokens", "p_tuning": "tokens", "prefix": "tokens"}.get(tuning.method)
    if wanted is not None and getattr(tuning, wanted) not in sides:
        raise ValueError(f"{folder}: {wanted} is {getattr(tuning, wanted)}, but its weights have no such side")


def _patterns(described: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name in ("target_modules", "exclude_modules", "layers_pattern", "rank_pattern", "alpha_pattern"):
        value = described.get(name) or ()
        for one in [value] if isinstance(value, str) else value:
            if not isinstance(one, str):
                raise ValueError(f"{name} holds {str(one)[:40]!r}, not the names of modules")
            yield name, one
