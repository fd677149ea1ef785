"""The causal decoder: MAGNETO sub-LN blocks (arXiv 2210.06423, section 3.1), equal to torchscale and KOSMOS-2.

    x = x + Wo · LN_inner(attention(LN_a(x)))        LN_inner over the full width, after the heads are joined
    x = x + W2 · LN_ffn(gelu(W1 · LN_f(x)))          LN_ffn over the width of the FFN
    logits = LN_final(x) · Eᵀ

``sub_layer_norm: false`` leaves LN_inner and LN_ffn out: pre-LN, the block that MAGNETO is compared with.

Parameter names are torchscale's; ``final_layer_norm`` is the norm before the FFN, despite its name.

Differs from torchscale: the cache holds rotated keys (positions.py) and takes any number of tokens at a time, left
padding and packed documents work, GELU is not forced to fp32 in half precision.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import PreTrainedModel
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache, DynamicCache
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .attention import (
    AttentionPlan,
    attend,
    eager_attention,
    plan_attention,
    refuse_xpos_blocks,
)
from .configuration_kosmos import KosmosTextConfig
from .cross_attention import Coupling, GatedCrossAttention
from .encoders import Encoder
from .initialization import init_embedding, init_norm, init_projection, linear
from .positions import KosmosPositions, count_positions, rotate
from .routing import Asked, Router, Routes, WeightPredictor
from .rows import RowLayout
from .versions import either, named, refuse_other_caches


def sub_norm(config: KosmosTextConfig, width: int) -> nn.Module:
    """Return the norm of sub-LN before an output projection; of a pre-LN decoder, nothing."""
    return nn.LayerNorm(width, eps=config.layer_norm_eps) if config.sub_layer_norm else nn.Identity()


class KosmosAttention(nn.Module):
    """Causal self-attention with sub-LN before the output projection."""

    is_causal = True
    num_key_value_groups = 1

    def __init__(self, config: KosmosTextConfig, layer_idx: int) -> None:
        super().__init__()
        self.config, self.layer_idx = config, layer_idx
        width = config.hidden_size
        self.num_heads = config.num_attention_heads
        self.scaling = (width // self.num_heads) ** -0.5
        plain = partial(init_projection, config=config, scaled=False)
        scaled = partial(init_projection, config=config, scaled=True)
        self.q_proj = linear(width, width, plain)
        self.k_proj = linear(width, width, plain)
        self.v_proj = linear(width, width, scaled)
        self.inner_attn_ln = sub_norm(config, width)
        self.out_proj = linear(width, width, scaled)

    def forward(
        self,
        hidden_BTD: Tensor,
        rotation: Tensor | None,
        plan: AttentionPlan,
        past_key_values: Cache | None,
        prefix: Any = None,
        routes: Routes | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Return the attended states (B, T, D) and, from the eager kernel, the weights.

        ``prefix`` is a ``tuning.prompts.Prefix``, which has keys and values of its own at some places; ``routes`` is
        what a routed layer attends by (routing.py).
        """
        query, key, value = (
            projection(hidden_BTD).unflatten(-1, (self.num_heads, -1))
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        if rotation is not None:
            query, key = rotate(query, key, rotation)
        if prefix is not None:
            key, value = prefix.put(key, value, self.layer_idx)
        weights, dropout = None, self.config.attention_dropout if self.training else 0.0
        if past_key_values is not None:
            cached = past_key_values.update(key.transpose(1, 2), value.transpose(1, 2), self.layer_idx)
            if not plan.whole_rows:
                key, value = (heads.transpose(1, 2) for heads in cached)
        if routes is not None:
            attended = routes.attend(query, key, value, self.scaling, dropout)
        elif plan.way != "interface":
            attended = attend(plan, query, key, value, self.scaling, dropout)
        else:
            query, key, value = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
            interface = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention)
            attended, weights = interface(
                self, query, key, value, plan.mask, dropout=dropout, scaling=self.scaling, **kwargs
            )
        # heads side by side, whatever shape a kernel gives them: an engine's returns (B · T, D)
        return self.out_proj(self.inner_attn_ln(attended.reshape(*hidden_BTD.shape[:2], -1))), weights


class KosmosFeedForward(nn.Module):
    """fc2(LN(gelu(fc1(x))))."""

    def __init__(self, config: KosmosTextConfig) -> None:
        super().__init__()
        self.activation = ACT2FN[config.hidden_act]
        self.is_gelu = config.hidden_act == "gelu"
        self.activation_dropout = config.activation_dropout
        scaled = partial(init_projection, config=config, scaled=True)
        self.fc1 = linear(config.hidden_size, config.intermediate_size, scaled)
        self.ffn_layernorm = sub_norm(config, config.intermediate_size)
        self.fc2 = linear(config.intermediate_size, config.hidden_size, scaled)

    def forward(self, hidden_BTD: Tensor) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        inner = self.fc1(hidden_BTD)
        if self._recomputes(inner):
            norm = self.ffn_layernorm
            return self.fc2(GeluNorm.apply(inner, norm.weight, norm.bias, norm.eps))
        inner = self.activation(inner)
        if self.activation_dropout:
            inner = F.dropout(inner, p=self.activation_dropout, training=self.training)
        return self.fc2(self.ffn_layernorm(inner))

    def _recomputes(self, inner: Tensor) -> bool:
        """Whether ``GeluNorm`` may stand for activation and norm: nothing between them, no hook, no compiler."""
        norm = self.ffn_layernorm
        plain = self.is_gelu and type(norm) is nn.LayerNorm and not (norm._forward_hooks or norm._forward_pre_hooks)
        if not plain or self.activation_dropout or torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return False
        return inner.dtype == norm.weight.dtype and not torch.is_autocast_enabled(inner.device.type)


class GeluNorm(torch.autograd.Function):
    """LN(gelu(x)) that keeps x only and computes gelu again for the gradient.

    The FFN is 4 d wide, so this drops 4 of about 21 values a token, layer and unit of width for one cheap extra pass.
    """

    @staticmethod
    def forward(ctx: Any, inner: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        """(…, F) to (…, F)."""
        out, mean, scale = torch.native_layer_norm(F.gelu(inner), inner.shape[-1:], weight, bias, eps)
        ctx.save_for_backward(inner, mean, scale, weight, bias)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x, weight and bias."""
        inner, mean, scale, weight, bias = ctx.saved_tensors
        needed = [True, ctx.needs_input_grad[1], ctx.needs_input_grad[2]]
        grad, grad_weight, grad_bias = torch.ops.aten.native_layer_norm_backward(
            grads[0], F.gelu(inner), inner.shape[-1:], mean, scale, weight, bias, needed
        )
        return torch.ops.aten.gelu_backward(grad, inner), grad_weight, grad_bias, None


class KosmosBlock(GradientCheckpointingLayer):
    """One decoder layer."""

    def __init__(self, config: KosmosTextConfig, layer_idx: int) -> None:
        super().__init__()
        self.dropout = config.dropout
        self.self_attn_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self_attn = KosmosAttention(config, layer_idx)
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.ffn = KosmosFeedForward(config)

    def forward(
        self,
        hidden_BTD: Tensor,
        rotation: Tensor | None = None,
        plan: AttentionPlan | None = None,
        past_key_values: Cache | None = None,
        cache: Cache | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        assert plan is not None
        past_key_values = either(past_key_values, cache)
        attended, _ = self.self_attn(self.self_attn_layer_norm(hidden_BTD), rotation, plan, past_key_values, **kwargs)
        hidden_BTD = hidden_BTD + self._drop(attended)
        return hidden_BTD + self._drop(self.ffn(self.final_layer_norm(hidden_BTD)))

    def _drop(self, hidden_BTD: Tensor) -> Tensor:
        return F.dropout(hidden_BTD, p=self.dropout, training=True) if self.training and self.dropout else hidden_BTD


class KosmosPreTrainedModel(PreTrainedModel):
    """What every Kosmos module shares with transformers: capabilities and initialisation."""

    config_class: Any = KosmosTextConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["KosmosBlock", GatedCrossAttention.__name__]
    _skip_keys_device_placement = ["past_key_values", "cache"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True

    @classmethod
    def from_pretrained(
        cls,
        path: Any,
        *args: Any,
        strict: bool = True,
        ignore_mismatched_sizes: bool = False,
        output_loading_info: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Load a checkpoint; with ``strict`` (the default) its tensors must be exactly the model's.

        Raises:
            ValueError: tensors are missing, left over or of another shape; names both sides. ``strict=False``
                initialises missing ones and drops others, ``ignore_mismatched_sizes`` initialises those that differ.
        """
        kwargs |= {"ignore_mismatched_sizes": True, "output_loading_info": True}
        model, info = super().from_pretrained(path, *args, **kwargs)
        missing, unexpected = sorted(info["missing_keys"]), sorted(info["unexpected_keys"])
        if info["mismatched_keys"] and not ignore_mismatched_sizes:
            name, found, expected = sorted(info["mismatched_keys"])[0]
            raise ValueError(
                f"{path}: {len(info['mismatched_keys'])} tensors have another shape than {cls.__name__}'s; "
                f"{name} is {tuple(found)} in the checkpoint and {tuple(expected)} in the model"
            )
        if strict and (missing or unexpected):
            raise ValueError(
                f"{path} does not fit {cls.__name__}: the model misses {len(missing)} tensors {missing[:3]}, the "
                f"checkpoint has {len(unexpected)} the model does not know {unexpected[:3]}; pass strict=False to "
                "initialise the missing ones and drop the others"
            )
        for name, module in model.named_modules():
            if isinstance(module, Encoder):
                module.after_loading(missing=any(key.startswith(f"{name}.") for key in missing))
        return (model, info) if output_loading_info else model

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Called for every module with parameters of its own that no checkpoint filled."""
        if isinstance(module, nn.Embedding):
            init_embedding(module, self.config.get_text_config())
        elif isinstance(module, nn.LayerNorm):
            init_norm(module)
        elif hasattr(module, "start"):
            module.start(module)


@dataclass
class DecoderOutput(BaseModelOutputWithPast):
    """Hidden states; of a decoder with routed layers also α and its logit at each output, (B, T) fp32."""

    alpha: Tensor | None = None
    alpha_logit: Tensor | None = None


class KosmosDecoder(KosmosPreTrainedModel):
    """Embeddings, positions, blocks and the final norm: input ids or unscaled embeddings to hidden states."""

    config: KosmosTextConfig
    _can_record_outputs = {
        "hidden_states": KosmosBlock,
        "attentions": OutputRecorder(KosmosAttention, index=1, layer_name="self_attn"),
    }

    def __init__(self, config: KosmosTextConfig) -> None:
        super().__init__(config)
        self.embed_scale = config.hidden_size**0.5 if config.scale_embedding else 1.0
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.positions = KosmosPositions(config)
        self.layers = nn.ModuleList([KosmosBlock(config, index) for index in range(config.num_hidden_layers)])
        self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.routed = frozenset(config.routing_layers or ())
        self.routing = WeightPredictor(config.hidden_size) if self.routed else None
        self.gradient_checkpointing = False
        self.post_init()

    def check(self, position_ids: Tensor, position_in_span: Tensor | None, block_ids: Tensor | None = None) -> None:
        """Refuse positions and blocks that ``forward`` would refuse; nothing is computed.

        Raises:
            ValueError: blocks with xPos, or what ``KosmosPositions.check`` refuses.
        """
        if block_ids is not None:
            refuse_xpos_blocks(self.config, block_ids)
        self.positions.check(position_ids, position_in_span)

    @capture_outputs
    def forward(
        self,
        inputs_embeds: Tensor | None = None,
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
        asked: Asked | None = None,
        input_ids: Tensor | None = None,
        **kwargs: Any,
    ) -> DecoderOutput:
        """Run the decoder over unscaled embeddings (B, T, D); see KosmosForConditionalGeneration.forward.

        ``coupling`` is what its layers attend to beside the text (cross_attention.py), ``asked`` what routed layers are
        told of the tokens (routing.py); ``input_ids`` (B, T) may be given instead of embeddings.

        Raises:
            ValueError: both, or neither; what does not fit otherwise.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        past_key_values = either(past_key_values, cache)
        refuse_other_caches(kwargs)
        hidden_BTD = inputs_embeds * self.embed_scale if self.embed_scale != 1.0 else inputs_embeds
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        if position_ids is None:
            position_ids = self._position_ids(hidden_BTD, attention_mask, past_key_values)
        hidden_BTD = self.positions.add_to(hidden_BTD, position_ids, position_in_span, checked=layout is not None)
        if self.training and self.config.dropout:
            hidden_BTD = F.dropout(hidden_BTD, p=self.config.dropout, training=True)
        rotation = self.positions.rotation(position_ids)
        plan = plan_attention(
            self.config, hidden_BTD, attention_mask, past_key_values, document_ids, block_ids, self.training, layout
        )
        router, routes = None, None
        if self.routing is not None:
            where = (attention_mask, past_key_values, document_ids, block_ids)
            router = Router(self.config, hidden_BTD, *where, self.training, asked or Asked())
        for index, layer in enumerate(self.layers):
            if coupling is not None:
                hidden_BTD = coupling.before(index, hidden_BTD)
            special: dict[str, Any] = {}
            if index in self.routed:
                assert router is not None
                assert self.routing is not None
                special["routes"] = routes = routes or router.weigh(self.routing, hidden_BTD)
            hidden_BTD = layer(hidden_BTD, rotation, plan, **named(past_key_values), **special, **kwargs)
        return DecoderOutput(
            last_hidden_state=self.layer_norm(hidden_BTD),
            **named(past_key_values if use_cache else None),
            alpha=None if routes is None else routes.alpha_BT,
            alpha_logit=None if routes is None else routes.logit_BT,
        )

    def _position_ids(self, hidden_BTD: Tensor, attention_mask: Tensor | None, past: Cache | None) -> Tensor:
        """Count positions from 0; absolute ones skip what a 2-D mask hides, so that left padding changes nothing."""
        length, device = hidden_BTD.shape[1], hidden_BTD.device
        absolute = self.config.position_type in ("sinusoidal", "learned_2d")
        if absolute and attention_mask is not None and attention_mask.ndim == 2:
            return count_positions(attention_mask)[:, -length:]
        seen = past.get_seq_length() if past is not None else 0
        return (torch.arange(length, device=device) + seen)[None]
