"""How rows attend: the plan of one forward pass, and the kernels that compute what the rule of masks.py lets see.

Without ``document_ids`` a row is one document and transformers' attention interface does the work (eager, sdpa,
flex_attention, …). Packed rows are computed

* on a CPU document by document, which costs about a third of a dense mask (and flex has no backward pass there);
* on a GPU in training: by plain causal attention where each row is one document; by flash attention over documents of
  any length (``varlen_attn``, half precision) where nothing but documents divides the rows; else by one compiled
  flex_attention over all rows, so that no T×T mask exists;
* on a GPU otherwise by a dense mask of booleans: prompts are short, and each length would compile flex anew;
* with ``attn_implementation="eager"`` by the dense mask, the reference.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.cache_utils import Cache
from transformers.masking_utils import create_causal_mask

from .compiled import compiled
from .configuration_kosmos import KosmosTextConfig
from .masks import Run, blockwise_causal, document_mask, document_runs, flex_mask
from .rows import Packing, RowLayout, find_packing

MASKED = ("sdpa", "eager", "flex_attention")  # kernels of transformers that read any mask


@dataclass(frozen=True)
class AttentionPlan:
    """How every layer of one forward pass attends.

    Attributes:
        way: ``interface`` (of transformers, with ``mask``), or of rows that are described by documents ``runs``,
            ``causal``, ``lengths``, ``flex`` or ``dense``.
        mask: for the interface; for ``dense`` (B, 1, T, T) booleans.
        runs: of a CPU.
        borders: for ``lengths``, where documents begin in the rows laid end to end, (N + 1,) int32.
        block_mask: flex_attention's.
        whole_rows: attend to the keys of this pass, which begins the rows, and not to what a cache returns (a static
            one returns its empty places as well).
    """

    way: Literal["interface", "runs", "causal", "lengths", "flex", "dense"] = "interface"
    mask: Any = None
    runs: list[Run] | None = None
    borders: Tensor | None = None
    block_mask: Any = None
    whole_rows: bool = True


def plan_attention(
    config: KosmosTextConfig,
    hidden_BTD: Tensor,
    attention_mask: Tensor | None,
    past_key_values: Cache | None,
    document_ids_BT: Tensor | None,
    block_ids_BT: Tensor | None,
    training: bool,
    layout: RowLayout | None = None,
) -> AttentionPlan:
    """Choose the way of attending for one forward pass; ``layout``: what is known of the rows, see rows.py.

    Raises:
        ValueError: bidirectional blocks with xPos; packed rows with a cache or a padding mask; a document in pieces;
            shapes that differ from the input's.
    """
    if block_ids_BT is not None and layout is None:
        refuse_xpos_blocks(config, block_ids_BT)
    documents_BT = documents_of(hidden_BTD, attention_mask, past_key_values, document_ids_BT, block_ids_BT)
    if documents_BT is None:
        and_mask = blockwise_causal(config, hidden_BTD, attention_mask, past_key_values, training)
        if and_mask is not None:
            refuse_maskless(config)
        mask = create_causal_mask(config, hidden_BTD, attention_mask, past_key_values, and_mask_function=and_mask)
        return AttentionPlan(mask=mask, whole_rows=False)
    if config._attn_implementation == "eager":
        allowed = document_mask(documents_BT, block_ids_BT)
        return AttentionPlan(mask=torch.where(allowed, 0.0, torch.finfo(hidden_BTD.dtype).min)[:, None])
    half = hidden_BTD.dtype in (torch.bfloat16, torch.float16)
    plan = plan_documents(documents_BT, block_ids_BT, training, half, None if layout is None else layout.packing)
    if training:
        refuse_dropout(plan, config.attention_dropout)
    return plan


def documents_of(
    hidden_BTD: Tensor,
    attention_mask: Tensor | None,
    past_key_values: Cache | None,
    document_ids_BT: Tensor | None,
    block_ids_BT: Tensor | None,
) -> Tensor | None:
    """Return which document each token of whole rows is in, (B, T) and -1 on padding; None: rows are not described.

    Raises:
        ValueError: shapes that differ from the input's; a cache that holds something, or a mask beside documents.
    """
    for name, ids in (("document_ids", document_ids_BT), ("block_ids", block_ids_BT)):
        if ids is not None and ids.shape != hidden_BTD.shape[:2]:
            raise ValueError(f"{name} have shape {tuple(ids.shape)}, the inputs {tuple(hidden_BTD.shape[:2])}")
    if block_ids_BT is not None and document_ids_BT is None:
        document_ids_BT = torch.zeros_like(block_ids_BT)
        if attention_mask is not None:
            document_ids_BT = document_ids_BT.masked_fill(attention_mask == 0, -1)
            attention_mask = None
    if document_ids_BT is None:
        return None
    if past_key_values is not None and past_key_values.get_seq_length() > 0:
        raise ValueError("document_ids and block_ids describe whole rows: they cannot be used with past_key_values")
    if attention_mask is not None:
        raise ValueError("give padding as document_ids = -1, not as an attention_mask beside document_ids")
    return document_ids_BT


def plan_documents(
    documents_BT: Tensor,
    blocks_BT: Tensor | None,
    training: bool,
    half: bool,
    packing: Packing | None = None,
    window: int | None = None,
) -> AttentionPlan:
    """Choose how packed rows attend on this device.

    Args:
        half: heads come in half precision, as flash attention takes them.
        packing: how documents lie in the rows; found here if it is not known.
        window: that of sliding-window layers.

    Raises:
        ValueError: a document in pieces.
    """
    if documents_BT.device.type == "cpu":
        return AttentionPlan("runs", runs=document_runs(documents_BT, blocks_BT, window))
    if training:
        packing = packing or find_packing(documents_BT, blocks_BT)
        if blocks_BT is None and window is None and packing.alone:
            return AttentionPlan("causal")
        if blocks_BT is None and window is None and half:
            # the number of documents is another in each batch: one graph for all of them
            torch._dynamo.maybe_mark_dynamic(packing.borders, 0)
            return AttentionPlan("lengths", borders=packing.borders)
        if packing.connected:
            return AttentionPlan("flex", block_mask=flex_mask(documents_BT, blocks_BT, window))
    return AttentionPlan("dense", mask=document_mask(documents_BT, blocks_BT, window)[:, None])


def attend_runs(
    query_BTHK: Tensor, key_BTHK: Tensor, value_BTHK: Tensor, runs: list[Run], scaling: float, dropout: float = 0.0
) -> Tensor:
    """Attend inside each run only, (B, T, H, K) in and out; padding gets zeros."""
    lengths = [run.length for run in runs]
    flat = [
        heads.flatten(0, 1).transpose(0, 1)[None].split(lengths, dim=2) for heads in (query_BTHK, key_BTHK, value_BTHK)
    ]
    parts = []
    for run, query, key, value in zip(runs, *flat, strict=True):
        if run.padding:
            parts.append(torch.zeros_like(query))
        else:
            parts.append(
                F.scaled_dot_product_attention(
                    query, key, value, attn_mask=run.mask, dropout_p=dropout, is_causal=run.mask is None, scale=scaling
                )
            )
    return torch.cat(parts, dim=2)[0].transpose(0, 1).unflatten(0, query_BTHK.shape[:2])


def attend_lengths(query_BTHK: Tensor, key_BTHK: Tensor, value_BTHK: Tensor, borders: Tensor, scaling: float) -> Tensor:
    """Attend causally inside each document of the rows laid end to end, on a GPU in half precision."""
    from torch.nn.attention.varlen import varlen_attn

    rows, length, heads = query_BTHK.shape[:3]
    query, key, value = (states.flatten(0, 1) for states in (query_BTHK, key_BTHK, value_BTHK))
    if heads != key.shape[1]:
        key, value = (states.repeat_interleave(heads // key.shape[1], 1) for states in (key, value))
    out: Any = varlen_attn(query, key, value, borders, borders, length, length, scale=scaling, window_size=(-1, 0))
    return out.view(rows, length, heads, -1)


def attend_flex(query_BTHK: Tensor, key_BTHK: Tensor, value_BTHK: Tensor, block_mask: Any, scaling: float) -> Tensor:
    """Attend with flex_attention, compiled: as it is written it would build the T×T scores; (B, T, H, K) in and out."""
    from torch.nn.attention.flex_attention import flex_attention

    query, key, value = (heads.transpose(1, 2) for heads in (query_BTHK, key_BTHK, value_BTHK))
    flex: Any = flex_attention if torch.compiler.is_compiling() else compiled(flex_attention, dynamic=False)
    grouped = query.shape[1] != key.shape[1]
    # four warps, torch's choice, keep 257 registers in memory at heads of 64, eight none (tests/simulated)
    warps = {"fwd_num_warps": 8} if query.shape[-1] <= 64 else None
    out = flex(query, key, value, block_mask=block_mask, scale=scaling, enable_gqa=grouped, kernel_options=warps)
    return out.transpose(1, 2)


def attend(
    plan: AttentionPlan,
    query_BTHK: Tensor,
    key_BTHK: Tensor,
    value_BTHK: Tensor,
    scaling: float,
    dropout: float = 0.0,
) -> Tensor:
    """Attend as ``plan`` says, (B, T, H, K) in and out; keys and values may have fewer heads, except in runs."""
    if plan.runs is not None:
        return attend_runs(query_BTHK, key_BTHK, value_BTHK, plan.runs, scaling, dropout)
    if plan.borders is not None:
        return attend_lengths(query_BTHK, key_BTHK, value_BTHK, plan.borders, scaling)
    if plan.block_mask is not None:
        return attend_flex(query_BTHK, key_BTHK, value_BTHK, plan.block_mask, scaling)
    query, key, value = (heads.transpose(1, 2) for heads in (query_BTHK, key_BTHK, value_BTHK))
    causal, grouped = plan.way == "causal", query.shape[1] != key.shape[1]
    attended = F.scaled_dot_product_attention(
        query, key, value, plan.mask, dropout, is_causal=causal, scale=scaling, enable_gqa=grouped
    )
    return attended.transpose(1, 2)


def eager_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Tensor, Tensor]:
    """The reference kernel of the attention interface; softmax in fp32. Returns (B, T, H, K) and the weights."""
    scores = (query @ key.transpose(2, 3)) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask[..., : key.shape[-2]]
    weights = scores.softmax(dim=-1, dtype=torch.float32).to(query.dtype)
    weights = F.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2), weights


def refuse_dropout(plan: AttentionPlan, dropout: float) -> None:
    """Raise ValueError where attention shall drop weights, and the kernel of packed rows on a GPU has none."""
    if dropout and plan.way in ("lengths", "flex"):
        kernel = "flex_attention" if plan.way == "flex" else "varlen_attn"
        raise ValueError(
            f"attention_dropout is {dropout}, but {kernel}, which packed rows use on a GPU, has none; set "
            "text_config.attention_dropout=0"
        )


def refuse_xpos_blocks(config: KosmosTextConfig, block_ids_BT: Tensor) -> None:
    """Raise ValueError where a model with xPos shall see to the right."""
    if config.position_type == "xpos" and bool((block_ids_BT >= 0).any()):
        raise ValueError(
            "block_ids ask for bidirectional attention, but text_config.position_type is 'xpos', which amplifies keys "
            "to the right of the query (150 times at a distance of 2048); set position_type to 'rope' or 'learned_2d', "
            "or the objective's bidirectional to false"
        )


def refuse_maskless(config: KosmosTextConfig) -> None:
    """Raise ValueError where blockwise causal attention is asked of a kernel that reads no mask, and would drop it."""
    if config._attn_implementation not in MASKED:
        raise ValueError(
            f"text_config.blockwise_causal_length is {config.blockwise_causal_length} and the input is longer, but "
            f"attn_implementation {config._attn_implementation!r} reads no such mask: choose {' or '.join(MASKED)}, or "
            "set blockwise_causal_length to null and stay below it"
        )
