"""Any causal language model of transformers in the place of our decoder: its own code, under our rule of who sees whom.

transformers' models ask two tables by the name of their attention implementation: one for the mask, once a forward
pass (and kind of layer), one for attention itself, in each layer. ``NAME`` is in both. Rows that are not described by
documents or blocks take transformers' own sdpa path. Where they are, the "mask" is our ``AttentionPlan``
(attention.py), which the model hands to its layers unread, so that packed rows and bidirectional blocks need no code of
its own, and gradient checkpointing sees an argument like any other. Sliding windows are kept; other patterns are
refused.

Differs from our decoder: features are written into what the embedding gives, scaled where the model scales there
(Gemma); positions begin anew in each document, as absolute and rescaled rotary ones need.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache
from transformers.initialization import no_init_weights
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import AttentionInterface
from transformers.models.auto.modeling_auto import MODEL_MAPPING

from .attention import AttentionPlan, documents_of, plan_documents, refuse_dropout
from .attention import attend as attend_by
from .cross_attention import Coupling, coupled
from .positions import count_positions
from .rows import Packing, RowLayout
from .versions import either, named, refuse_other_caches

NAME = "kosmos"


@dataclass
class Rows:
    """What the masks of one forward pass are made of; ``plans`` holds one for each width of window."""

    documents_BT: Tensor
    blocks_BT: Tensor | None
    training: bool
    half: bool
    packing: Packing | None
    plans: dict[int | None, AttentionPlan] = field(default_factory=dict)

    def plan(self, window: int | None) -> AttentionPlan:
        """Return the plan of the layers with this window."""
        if window not in self.plans:
            self.plans[window] = plan_documents(
                self.documents_BT, self.blocks_BT, self.training, self.half, self.packing, window
            )
        return self.plans[window]


# The rows of the forward pass that is running in this thread, where they are described.
_ROWS: ContextVar[Rows | None] = ContextVar("rows", default=None)


# Whether decoders that are made in this thread get their weights afterwards.
_AWAITING: ContextVar[bool] = ContextVar("awaiting", default=False)


@contextmanager
def described(rows: Rows | None) -> Iterator[None]:
    """Let ``make_mask`` know the rows."""
    token = _ROWS.set(rows)
    try:
        yield
    finally:
        _ROWS.reset(token)


def make_mask(**wanted: Any) -> Any:
    """The entry of transformers' table of masks: our plan for described rows, otherwise the mask of sdpa."""
    rows = _ROWS.get()
    return sdpa_mask(**wanted) if rows is None else rows.plan(wanted.get("local_size"))


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    scaling: float | None = None,
    dropout: float = 0.0,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """The entry of transformers' table of attention functions; heads (B, H, T, K) in, (B, T, H, K) out.

    Raises:
        ValueError: packed rows with sinks, soft caps or biases of positions, or on a GPU with dropout, which our
            kernels do not have.
    """
    plan = attention_mask
    if not isinstance(plan, AttentionPlan):
        return sdpa_attention_forward(module, query, key, value, plan, dropout=dropout, scaling=scaling, **options)
    for name in ("softcap", "s_aux", "position_bias"):
        if options.get(name) is not None:
            raise ValueError(f"{type(module).__name__} attends with {name}, which packed rows and blocks do not have")
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    length, groups = query.shape[2], query.shape[1] // key.shape[1]
    key, value = key[:, :, :length], value[:, :, :length]  # a static cache also returns its empty places
    refuse_dropout(plan, dropout)
    if plan.runs is not None:
        key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    query, key, value = (heads.transpose(1, 2) for heads in (query, key, value))
    return attend_by(plan, query, key, value, scaling, dropout), None


AttentionMaskInterface.register(NAME, make_mask)
AttentionInterface.register(NAME, attend)


@contextmanager
def awaiting_weights() -> Iterator[None]:
    """Build decoders of transformers without drawing weights, for ``docking.take_weights`` brings all of them.

    Drawing those of 7 billion parameters takes minutes, for nothing.
    """
    token = _AWAITING.set(True)
    try:
        yield
    finally:
        _AWAITING.reset(token)


def _mark_filled(model: nn.Module) -> None:
    """Tell transformers, which initialises what no checkpoint filled when the whole model is made, to leave it."""
    for part in model.modules():
        part._is_hf_initialized = True  # type: ignore[assignment]
    for parameter in model.parameters():
        parameter._is_hf_initialized = True  # type: ignore[attr-defined]


class TransformersDecoder(nn.Module):
    """A language model of transformers without its output matrix, called as ``KosmosDecoder`` is.

    Raises:
        ValueError: a model that is not causal, or that does not attend through transformers' table.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        if type(config) not in MODEL_MAPPING:
            raise ValueError(f"text_config: transformers has no model for {type(config).__name__}")
        kind: Any = MODEL_MAPPING[type(config)]
        with no_init_weights() if _AWAITING.get() else nullcontext():
            self.model = kind(config)  # on this very config: what changes here changes there
        if _AWAITING.get():
            _mark_filled(self.model)
        _refuse_unfit(self.model)
        self._settle()
        self.learns_positions = sum(isinstance(part, nn.Embedding) for part in self.model.modules()) > 1
        self.every_layer_attends = _every_layer_attends(self.model)

    @property
    def config(self) -> Any:
        """The language model's own config."""
        return self.model.config

    @property
    def embed_tokens(self) -> Any:
        """The input embeddings."""
        return self.model.get_input_embeddings()

    @property
    def layers(self) -> nn.ModuleList:
        """The blocks from first to last."""
        count = self.config.num_hidden_layers
        return next(part for part in self.model.modules() if isinstance(part, nn.ModuleList) and len(part) == count)

    def get_input_embeddings(self) -> nn.Module:
        """The input embeddings."""
        return self.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the input embeddings."""
        self.model.set_input_embeddings(value)

    def embedding_name(self) -> str:
        """Return the name of the embedding matrix inside this module, for what is tied to it."""
        weight = self.embed_tokens.weight
        return next(name for name, parameter in self.named_parameters() if parameter is weight)

    def _settle(self) -> None:
        """transformers says sdpa where nothing else was asked for, at any time; ours is that, and packed rows."""
        if self.config._attn_implementation == "sdpa":
            self.config._attn_implementation = NAME

    def check(self, position_ids: Tensor, position_in_span: Tensor | None, block_ids: Tensor | None = None) -> None:
        """Refuse positions that the model does not read; nothing is computed.

        Raises:
            ValueError: GLM's second positions, or positions behind the end of a learned table.
        """
        if position_in_span is not None:
            raise ValueError(
                f"position_in_span was given, but a {self.config.model_type} decoder has one position a token; set the "
                "objective's two_positions to false"
            )
        limit: int = getattr(self.config, "max_position_embeddings", 0)
        if self.learns_positions and position_ids.numel() and int(position_ids.max()) >= limit:
            raise ValueError(
                f"position_ids reach {int(position_ids.max())}, but the {self.config.model_type} decoder's learned "
                f"table ends at {limit - 1}; shorten the input"
            )

    def forward(
        self,
        inputs_embeds: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        document_ids: Tensor | None = None,
        block_ids: Tensor | None = None,
        position_in_span: Tensor | None = None,
        cache: Cache | None = None,
        coupling: Coupling | None = None,
        layout: RowLayout | None = None,
        **kwargs: Any,
    ) -> Any:
        """Run the model over embeddings (B, T, D); see KosmosForConditionalGeneration.forward.

        Raises:
            ValueError: what ``check`` refuses, packed rows that not every layer would keep apart, or cross-attention in
                layers that are computed twice.
        """
        past_key_values = either(past_key_values, cache)
        refuse_other_caches(kwargs)
        self._settle()
        documents_BT = documents_of(inputs_embeds, attention_mask, past_key_values, document_ids, block_ids)
        if position_ids is None:
            position_ids = _count(inputs_embeds, attention_mask, past_key_values, documents_BT)
        if layout is None and (position_in_span is not None or self.learns_positions):
            self.check(position_ids, position_in_span)
        rows = None
        if documents_BT is not None:
            attention_mask = None
            self._refuse_leaks()
            half = inputs_embeds.dtype in (torch.bfloat16, torch.float16)
            packing = None if layout is None else layout.packing
            rows = Rows(documents_BT, block_ids, self.training, half, packing)
        if coupling is not None and self.training and self.model.is_gradient_checkpointing:
            raise ValueError(
                "coupling: cross_attention over a decoder of transformers does not go with activation_checkpointing: "
                "its layers, computed again, would not know their images"
            )
        with described(rows), coupled(coupling):
            return self.model(
                inputs_embeds=inputs_embeds,
                attention_mask=attention_mask,
                position_ids=position_ids,
                use_cache=bool(use_cache),
                **named(past_key_values),
                **kwargs,
            )

    def _refuse_leaks(self) -> None:
        """Refuse packed rows where a layer would see over the borders of documents: recurrent, chunked, other kernels.

        Raises:
            ValueError: naming what such a layer is.
        """
        config = self.config
        if config._attn_implementation != NAME:
            raise ValueError(
                f"document_ids and block_ids need attn_implementation='sdpa' (it is {config._attn_implementation!r}) "
                f"with a {config.model_type} decoder"
            )
        if not self.every_layer_attends:
            raise ValueError(
                f"a {config.model_type} decoder has layers that are not plain or sliding attention: packed documents "
                "would see each other, and blocks would not be bidirectional; give one document a row"
            )


def _count(hidden_BTD: Tensor, mask: Tensor | None, past: Cache | None, documents_BT: Tensor | None) -> Tensor:
    """Count positions from 0 in each document, or in each row without what a 2-D mask hides."""
    length, device = hidden_BTD.shape[1], hidden_BTD.device
    if documents_BT is not None:
        place = torch.arange(length, device=device).expand_as(documents_BT)
        begins = torch.ones_like(documents_BT, dtype=torch.bool)
        begins[:, 1:] = documents_BT[:, 1:] != documents_BT[:, :-1]
        return place - (place * begins).cummax(1).values
    if mask is not None and mask.ndim == 2:
        return count_positions(mask)[:, -length:].clamp(min=0)
    seen = past.get_seq_length() if past is not None else 0
    return (torch.arange(length, device=device) + seen)[None]


def _every_layer_attends(model: Any) -> bool:
    """Whether nothing but full or sliding attention carries anything from token to token."""
    config, parts = model.config, list(model.modules())
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    attending = sum(hasattr(part, "is_causal") for part in parts)
    recurrent = any(isinstance(part, nn.Conv1d) for part in parts) or getattr(config, "attention_chunk_size", None)
    return kinds <= {"full_attention", "sliding_attention"} and attending >= config.num_hidden_layers and not recurrent


def _refuse_unfit(model: Any) -> None:
    """Raise ValueError for what cannot be our decoder, by what its modules are."""
    config, name = model.config, model.config.model_type
    causal = [part.is_causal for part in model.modules() if isinstance(getattr(part, "is_causal", None), bool)]
    if config.is_encoder_decoder or not all(causal) or not getattr(config, "is_causal", True):
        raise ValueError(f"text_config: {name} is no causal decoder: its tokens see what comes after them")
    if not model._supports_attention_backend or not model._supports_sdpa:
        raise ValueError(
            f"text_config: {name} does not attend through transformers' attention interface with sdpa; choose another "
            "decoder, for instance a Llama, Qwen, Gemma, Mistral or GPT-NeoX"
        )
    embedding = model.get_input_embeddings()
    if not isinstance(embedding, nn.Embedding) or embedding.embedding_dim != config.hidden_size:
        raise ValueError(f"text_config: the embeddings of {name} are not as wide as its hidden states")
