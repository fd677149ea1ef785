"""Kosmos: a causal decoder that reads text, and images and text spans through frozen encoders and connectors.

``KosmosForConditionalGeneration`` adds the output matrix, the loss and ``generate()`` to ``KosmosModel``
(base_model.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import AutoModel, AutoModelForImageTextToText
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPooling, CausalLMOutputWithPast
from transformers.utils.generic import can_return_tuple

from .atomic import open_to_umask, writing
from .base_model import KosmosModel, KosmosModelOutput
from .choices import Choices, choice_loss, taken, total_weight
from .configuration_kosmos import KosmosConfig
from .decoder import KosmosPreTrainedModel
from .encoder_configs import QUERYING
from .encoder_weights import load_encoder_weights
from .entities import EntityOutput, read_entities
from .generation import KosmosGenerationMixin
from .initialization import init_embedding
from .loss import IGNORE, TokenLoss, cross_entropy, shift
from .modalities import IMAGE, MODALITIES
from .routing import routing_loss
from .rows import RowLayout
from .transformers_decoder import TransformersDecoder
from .versions import cache_of, either, named


@dataclass
class KosmosOutput(CausalLMOutputWithPast):
    """What the language model returns.

    Attributes:
        loss: scalar fp32, weighted mean NLL in nats.
        logits: (B, T, V), or None where a loss was asked for without them.
        past_key_values, hidden_states, attentions: as everywhere in transformers, which names the first from 5.24 on
            ``cache``.
        token_loss: (B, T) fp32, detached NLL of what each output had to predict, 0 where ignored.
        image_features: (I, Q, D) unscaled.
        ratings: (I,) fp32, what a model with ``entity_config.rating`` predicts at the place of each entity.
        entity_losses: weighted sums (2,) of the context and the rating loss over what they were divided by, detached;
            they are part of ``loss``.
        alpha: (B, T) fp32, how much the persona counts in routed layers at each output that is written.
        routing_loss: what its classifier's loss adds to ``loss``, detached.
    """

    token_loss: Tensor | None = None
    image_features: Tensor | None = None
    ratings: Tensor | None = None
    entity_losses: Tensor | None = None
    alpha: Tensor | None = None
    routing_loss: Tensor | None = None


class KosmosForConditionalGeneration(KosmosPreTrainedModel, KosmosGenerationMixin):
    """The language model: KosmosModel with an output matrix tied to the embeddings."""

    config_class = KosmosConfig
    config: KosmosConfig
    input_modalities = ("image", "text")
    _tied_weights_keys = {"lm_head.weight": "model.decoder.embed_tokens.weight"}

    def __init__(self, config: KosmosConfig) -> None:
        super().__init__(config)
        self.model = KosmosModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        if isinstance(self.model.decoder, TransformersDecoder):  # each model has a name of its own for its embeddings
            self._tied_weights_keys = {"lm_head.weight": f"model.decoder.{self.model.decoder.embedding_name()}"}
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Return the decoder's embeddings."""
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the decoder's embeddings."""
        self.model.set_input_embeddings(value)

    def get_image_features(self, pixel_values: Tensor, **kwargs: Any) -> BaseModelOutputWithPooling:
        """See ``KosmosModel.get_image_features``."""
        return self.model.get_image_features(pixel_values, **kwargs)

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """As everywhere in transformers; a processor that was saved to the folder before gives its rules of writing."""
        self.take_rules_of(save_directory)
        if self.config.is_routed:
            from .processing_kosmos import note_routing

            note_routing(save_directory)
        with writing(save_directory):
            super().save_pretrained(save_directory, *args, **kwargs)
        open_to_umask(Path(save_directory), below=False)

    def load_weights(self, modality: str, path: str | Path) -> None:
        """Load the weights of a modality's encoder, by its name in ``MODALITIES``, from a local file or folder.

        ``load_weights("image", …)`` are those of the vision tower; see encoder_weights.py.

        Raises:
            ValueError: the model has no such encoder, or the weights do not fit it.
        """
        encoder = getattr(self.model, MODALITIES[modality].encoder, None)
        if encoder is None:
            raise ValueError(f"{path}: the model has no {MODALITIES[modality].config}, whose weights these would be")
        load_encoder_weights(encoder, path)

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is getattr(self, "lm_head", None) and not self.config.tie_word_embeddings:
            init_embedding(nn.Embedding.from_pretrained(module.weight, freeze=False), self.config.text_config)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        pixel_values: Tensor | None = None,
        labels: Tensor | None = None,
        shift_labels: Tensor | None = None,
        loss_weight: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        document_ids: Tensor | None = None,
        block_ids: Tensor | None = None,
        position_in_span: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        skip_logits: bool | None = None,
        cache: Cache | None = None,
        layout: RowLayout | None = None,
        **kwargs: Any,
    ) -> KosmosOutput:
        """Predict the next token everywhere.

        Args:
            input_ids: (B, T), with placeholders where features go.
            attention_mask: (B, T) with 0 on padding, on either side; or a 4-D mask of the attention interface.
            position_ids: (B, T) from 0; by default counted (absolute positions skip left padding).
            past_key_values: a transformers cache; one or many new tokens at a time.
            inputs_embeds: (B, T, D) unscaled, instead of ``input_ids``.
            pixel_values: (I, 3, S, S) normalised floats, images in the row-major order of their placeholders.
            labels: (B, T) unshifted, -100 ignored, as everywhere in transformers.
            shift_labels: (B, T) already shifted: what each output must predict.
            loss_weight: (B, T) fp32 weight of each output's loss, 1 by default.
            num_items_in_batch: what the weighted sum of NLL is divided by; the sum of weights by default.
            document_ids: (B, T) packed rows, -1 on padding: a query sees its own document only (attention.py).
            block_ids: (B, T) stretches that see both ways, -1 elsewhere; not with xPos.
            position_in_span: (B, T) GLM's second position; ``generate()`` counts it on, and keeps the first, in a span.
            logits_to_keep: compute logits of the last so many outputs only (0: all).
            skip_logits: return no logits beside a loss. Default: with ``shift_labels``; with ``labels`` in training.
            cache: ``past_key_values`` by the name that transformers gives it from 5.24 on.
            layout: what ``model.describe_rows`` found in these inputs while they were on the CPU, moved to the device:
                nothing is asked of the device then (rows.py).
            kwargs: ``use_cache``, ``dummy_image`` (touch encoders that this batch leaves out, so that no rank waits
                for a gradient), ``output_hidden_states``, ``output_attentions``, and the inputs of other modalities
                by the names that ``MODALITIES`` has: of text spans, ids and mask (S, L) of the text encoder. For
                attention routing (routing.py): ``alpha``, a number or (B,), sets by hand how much the persona counts;
                ``writing`` (B, T) booleans say which outputs are written, by default those with a label, without
                labels a prompt's last and all that follow; ``persona_related`` (B, T), 1, 0 or -1 for unknown, says
                whether an answer is about the persona, which α learns. For answers among their choices: the three
                tensors of choices.py by its ``NAMES``, beside labels.

        Raises:
            ValueError: anything that does not fit, naming both sides.
        """
        past_key_values = either(past_key_values, cache)
        others = (inputs_embeds, pixel_values, labels, shift_labels, document_ids, block_ids)
        single = past_key_values is not None and input_ids is not None and input_ids.shape[1] == 1
        if single and others == (None,) * 6:
            logits = self._decode_step(
                input_ids, attention_mask, position_ids, past_key_values, position_in_span, kwargs
            )
            if logits is not None:
                return KosmosOutput(logits=logits, **named(past_key_values))
        targets = shift(labels) if shift_labels is None and labels is not None else shift_labels
        related, choices = kwargs.pop("persona_related", None), taken(kwargs)
        if self.config.is_routed and targets is not None and kwargs.get("writing") is None:
            kwargs["writing"] = targets != IGNORE
            if choices is not None:
                kwargs["writing"].view(-1)[choices.tokens_K3[:, 0]] = True
        if choices is not None and targets is None:
            raise ValueError("choices were given without labels; give shift_labels, -100 where nothing else is learnt")
        if choices is not None and num_items_in_batch is None:
            num_items_in_batch = total_weight(targets, loss_weight, choices)
        outputs = self.model(
            input_ids, attention_mask, position_ids, past_key_values, inputs_embeds, document_ids=document_ids,
            block_ids=block_ids, position_in_span=position_in_span, pixel_values=pixel_values, layout=layout, **kwargs,
        )  # fmt: skip
        if skip_logits is None:
            skip_logits = shift_labels is not None or (labels is not None and self.training)
        weighed = loss_weight, num_items_in_batch
        known = None if layout is None or shift_labels is None else layout.supervised
        loss = self._token_loss(outputs.last_hidden_state, targets, *weighed, choices, known)
        entities = self._read_entities(outputs.last_hidden_state, input_ids, *weighed, kwargs)
        of_alpha = self._routing_loss(outputs.alpha_logit, related, targets, *weighed)
        loss = loss.plus(entities.loss).plus(of_alpha)
        output = self._output(outputs, loss, None if skip_logits else logits_to_keep)
        output.ratings, output.entity_losses = entities.ratings, entities.parts
        output.alpha, output.routing_loss = outputs.alpha, None if of_alpha is None else of_alpha.detach()
        return output

    def _token_loss(
        self,
        hidden_BTD: Tensor,
        targets_BT: Tensor | None,
        weight_BT: Tensor | None,
        num_items: Tensor | int | None,
        choices: Choices | None,
        supervised_N: Tensor | None,
    ) -> TokenLoss:
        """Return the loss of the next tokens and of the answers among their choices; none without targets."""
        if targets_BT is None:
            return TokenLoss(None, None)
        matrix = self.lm_head.weight
        loss = cross_entropy(hidden_BTD, matrix, targets_BT, weight_BT, num_items, supervised_N=supervised_N)
        if choices is None:
            return loss
        among = choice_loss(hidden_BTD, matrix, choices, weight_BT, num_items)
        return TokenLoss(loss.loss + among.loss, loss.token_loss_BT + among.token_loss_BT)

    def _read_entities(
        self,
        hidden_BTD: Tensor,
        input_ids: Tensor | None,
        weight_BT: Tensor | None,
        num_items: Tensor | int | None,
        given: dict[str, Any],
    ) -> EntityOutput:
        """Return what is predicted at the places of entities, nothing for a model without them."""
        if getattr(self.model, "entity_encoder", None) is None or input_ids is None:
            return EntityOutput()
        divisor = num_items if weight_BT is None or num_items is not None else weight_BT.sum()
        return read_entities(self, hidden_BTD, input_ids, given, divisor)

    def _routing_loss(
        self,
        alpha_logit_BT: Tensor | None,
        related_BT: Tensor | None,
        targets_BT: Tensor | None,
        weight_BT: Tensor | None,
        num_items: Tensor | int | None,
    ) -> Tensor | None:
        """Return what the classifier of attention routing adds to the loss, None where nobody said what is right."""
        if not self.config.is_routed or related_BT is None or alpha_logit_BT is None or targets_BT is None:
            return None
        loss = routing_loss(alpha_logit_BT, related_BT, targets_BT, weight_BT, num_items)
        return self.config.text_config.routing_loss * loss

    def _output(self, outputs: KosmosModelOutput, loss: TokenLoss, logits_to_keep: int | Tensor | None) -> KosmosOutput:
        """Assemble the output; ``logits_to_keep`` None means no logits, 0 all."""
        logits, hidden_BTD = None, outputs.last_hidden_state
        if isinstance(logits_to_keep, int) and logits_to_keep:
            hidden_BTD = hidden_BTD[:, -logits_to_keep:]
        elif isinstance(logits_to_keep, Tensor):
            hidden_BTD = hidden_BTD[:, logits_to_keep]
        if logits_to_keep is not None:
            logits = self.lm_head(hidden_BTD)
        return KosmosOutput(
            loss=loss.loss,
            logits=logits,
            **named(cache_of(outputs)),
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            token_loss=loss.token_loss_BT,
            image_features=outputs.image_features,
        )


def image_tokens(config: KosmosConfig) -> int:
    """Return how many positions an image takes in the model of ``config``."""
    if config.coupling == "cross_attention":
        return 1
    connector = config.connector_config
    return connector.num_queries if connector.kind in QUERYING else IMAGE.build(config.vision_config).count_tokens()


# A copy loaded through trust_remote_code must not displace the installed package's classes.
if not __name__.startswith("transformers_modules"):
    AutoModel.register(KosmosConfig, KosmosModel, exist_ok=True)
    AutoModelForImageTextToText.register(KosmosConfig, KosmosForConditionalGeneration, exist_ok=True)
