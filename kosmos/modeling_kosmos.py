"""Kosmos: a causal decoder that reads text, and images and text spans through frozen encoders and connectors.

``KosmosModel`` puts the features of images and spans in their places among the token embeddings and runs the decoder;
``KosmosForConditionalGeneration`` adds the output matrix, the loss and ``generate()``. KOSMOS-1 (arXiv 2302.14045,
section 2) is the case of images, MetaLM (arXiv 2206.06336, section 2) the case of text spans.

Features are written into the *unscaled* embeddings, so that sqrt(d) multiplies text and features alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForImageTextToText
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.utils.generic import can_return_tuple

from .configuration_kosmos import QUERYING, KosmosConfig, KosmosTextConfig
from .connectors import build_connector
from .cross_attention import Coupling, GatedCrossAttention, couple, held_by, see_images
from .decode_step import GrowingCache
from .decoder import KosmosDecoder, KosmosPreTrainedModel
from .encoder_weights import load_encoder_weights
from .entities import EntityOutput, RatingHead, read_entities
from .generation import KosmosGenerationMixin
from .initialization import init_embedding
from .loss import TokenLoss, cross_entropy, shift, supervised
from .modalities import IMAGE, MODALITIES, Modality, input_names
from .positions import count_positions
from .rows import RowLayout, find_packing
from .transformers_decoder import TransformersDecoder
from .versions import cache_of, either, named


@dataclass
class KosmosModelOutput(BaseModelOutputWithPast):
    """Hidden states of the decoder, and ``image_features`` (I, Q, D), the connector's unscaled output."""

    image_features: Tensor | None = None


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
    """

    token_loss: Tensor | None = None
    image_features: Tensor | None = None
    ratings: Tensor | None = None
    entity_losses: Tensor | None = None


class KosmosModel(KosmosPreTrainedModel):
    """Encoders, connectors and decoder, without the output matrix."""

    config_class = KosmosConfig
    config: KosmosConfig
    input_modalities = ("image", "text")
    _keys_to_ignore_on_load_unexpected = ["lm_head.weight"]  # a language model's checkpoint is a model's too

    def __init__(self, config: KosmosConfig) -> None:
        super().__init__(config)
        text_config = config.text_config
        for modality in MODALITIES.values():
            self._add_encoder(modality, text_config)
        if self.vision_tower is not None:
            self._check_image_tokens()
        if config.entity_config is not None and config.entity_config.rating:
            self.entity_encoder.rating_head = RatingHead(text_config.hidden_size)
        ours = text_config.model_type == KosmosTextConfig.model_type  # a class may be there twice, see auto_map
        self.decoder = KosmosDecoder(text_config) if ours else TransformersDecoder(text_config)
        crossed, heads = config.cross_layers(), (config.cross_attention_heads, config.cross_attention_head_dim)
        if crossed:
            self.cross_attention = nn.ModuleDict(
                {str(index): GatedCrossAttention(text_config.hidden_size, *heads, index) for index in crossed}
            )
            if not ours:
                couple(self.decoder.layers, crossed)
        self.post_init()

    def _add_encoder(self, modality: Modality, text_config: KosmosTextConfig) -> None:
        """Set the attributes of encoder and connector, None where the config describes no such encoder."""
        connector, encoder = None, getattr(self, modality.encoder, None)  # perhaps that of an earlier modality
        described = getattr(self.config, modality.config, None)
        if described is not None:
            encoder = modality.build(described) if encoder is None else encoder
            settings = getattr(self.config, modality.connector_config)
            width, heads = text_config.hidden_size, text_config.num_attention_heads
            connector = build_connector(settings, encoder.width, width, heads)
        setattr(self, modality.encoder, encoder)
        setattr(self, modality.connector, connector)

    def _check_image_tokens(self) -> None:
        if self.config.coupling == "cross_attention":
            return
        connector = self.config.connector_config
        made = connector.num_queries if connector.kind in QUERYING else self.vision_tower.count_tokens()
        if made != self.config.num_image_tokens:
            raise ValueError(
                f"the {connector.kind} connector makes {made} features an image, "
                f"but num_image_tokens is {self.config.num_image_tokens}; set it to {made}"
            )

    def get_input_embeddings(self) -> nn.Module:
        """Return the decoder's embeddings."""
        return self.decoder.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the decoder's embeddings."""
        self.decoder.set_input_embeddings(value)

    def get_image_features(self, pixel_values: Tensor) -> Tensor:
        """Normalised pixels (I, 3, S, S) to unscaled decoder inputs (I, Q, D)."""
        return self.encode(IMAGE, pixel_values=pixel_values)

    def encode(self, modality: Modality, **inputs: Tensor | None) -> Tensor:
        """Read inputs of one modality and return unscaled decoder inputs, (I, Q, D) or end to end (N, D).

        Raises:
            ValueError: the model has no such encoder.
        """
        self._require(modality)
        return modality.read(self, **inputs)

    def _require(self, modality: Modality) -> None:
        if getattr(self, modality.connector, None) is None:
            raise ValueError(f"{modality.inputs[0]} were given, but the model has no {modality.config}")

    def check(
        self,
        input_ids: Tensor,
        position_ids: Tensor | None = None,
        block_ids: Tensor | None = None,
        position_in_span: Tensor | None = None,
        **inputs: Any,
    ) -> None:
        """Refuse what ``forward`` would refuse, before anything is computed: the model may be on the meta device.

        Raises:
            ValueError: inputs without their encoder, placeholders without inputs, ids, positions or blocks that the
                model does not read.
        """
        known_ids, places = self._find_placeholders(input_ids)
        self._check_ids(known_ids)
        for modality in MODALITIES.values():
            if modality.given(inputs):
                self._require(modality)
            elif modality.name in places:
                self._refuse_unfilled(modality, places[modality.name])
        if position_ids is None:
            position_ids = torch.arange(input_ids.shape[1])
        self.decoder.check(position_ids, position_in_span, block_ids)

    def describe_rows(
        self,
        input_ids: Tensor,
        shift_labels: Tensor | None = None,
        document_ids: Tensor | None = None,
        block_ids: Tensor | None = None,
        **inputs: Any,
    ) -> RowLayout:
        """Answer for a batch on the CPU what ``forward`` would ask a GPU for; the model may be anywhere.

        Raises:
            ValueError: what ``forward`` would refuse of these inputs.
        """
        self.check(input_ids, block_ids=block_ids, **inputs)
        _, places_BT = self._find_placeholders(input_ids)
        places, indices = {}, {}
        for name, modality in MODALITIES.items():
            if given := modality.given(inputs):
                places[name] = places_BT[name].flatten().nonzero().squeeze(1)
                if modality.index is not None:
                    indices[name] = modality.index(getattr(self, modality.encoder), given)
        if document_ids is None and block_ids is not None:
            document_ids = torch.zeros_like(block_ids)
        vocabulary = self.decoder.embed_tokens.num_embeddings
        return RowLayout(
            places=places,
            supervised=None if shift_labels is None else supervised(shift_labels, vocabulary),
            indices=indices,
            packing=None if document_ids is None else find_packing(document_ids, block_ids),
        )

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        dummy_image: bool = False,
        cache: Cache | None = None,
        layout: RowLayout | None = None,
        **kwargs: Any,
    ) -> KosmosModelOutput:
        """See ``KosmosForConditionalGeneration.forward``; the inputs of all modalities are among ``kwargs``."""
        past_key_values = either(past_key_values, cache)
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        # a decoded token is what it is: only a prompt's placeholders must be filled
        fresh = past_key_values is None or input_ids is None or input_ids.shape[1] > 1
        inputs = {name: kwargs.pop(name, None) for name in input_names()}
        places: dict[str, Tensor] = {}
        if input_ids is not None:
            known_ids, places = self._find_placeholders(input_ids)
            if layout is None:
                self._check_ids(known_ids)
            inputs_embeds = self.decoder.embed_tokens(known_ids)
        features: dict[str, Tensor] = {}
        if (encoded := kwargs.pop("image_features", None)) is not None:
            features["image"] = encoded
        attended, touched = [IMAGE] if self.config.cross_layers() else [], None
        # One modality after the other, each written or touched before the next is read: backward runs in the opposite
        # order, the same on every rank, whatever its rows hold (modalities.py says what would happen otherwise).
        for modality in MODALITIES.values():
            given = modality.given(inputs)
            if given or modality.name in features:
                if given:
                    known = {} if layout is None else layout.indices.get(modality.name, {})
                    features[modality.name] = self.encode(modality, **given, **known)
                if input_ids is None:
                    places[modality.name] = self.find_places(modality, inputs_embeds)
                if modality not in attended:
                    where = places.get(modality.name) if layout is None else layout.places[modality.name]
                    inputs_embeds = self._write(modality, inputs_embeds, where, features[modality.name])
                continue
            if modality.name in places and fresh and layout is None:
                self._refuse_unfilled(modality, places[modality.name])
            if dummy_image and modality in attended:
                touched = self.encode(modality, **modality.smallest(self.config, self.device))
            elif dummy_image and getattr(self, modality.connector, None) is not None:
                inputs_embeds = inputs_embeds + self._touch(modality)
        if all(given is None for given in (position_ids, attention_mask, past_key_values, kwargs.get("document_ids"))):
            position_ids = self._positions_by_id(input_ids)
        if attended:
            past_key_values = self._cache(past_key_values, kwargs)
            documents = kwargs.get("document_ids")
            kwargs["coupling"] = self._couple(
                inputs_embeds, features.get("image"), touched, places.get("image"), documents, past_key_values
            )
        outputs = self.decoder(
            inputs_embeds, attention_mask, position_ids=position_ids, past_key_values=past_key_values, layout=layout,
            **kwargs,
        )  # fmt: skip
        return KosmosModelOutput(
            last_hidden_state=outputs.last_hidden_state,
            **named(cache_of(outputs)),
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_features=features.get("image"),
        )

    def _cache(self, cache: Cache | None, options: dict[str, Any]) -> Cache | None:
        """Return the cache of this pass; where one is asked for and none given, one that can hold images."""
        held_by(cache)
        return GrowingCache(self.config.get_text_config()) if cache is None and options.get("use_cache") else cache

    def _couple(
        self,
        embeds_BTD: Tensor,
        features_IQD: Tensor | None,
        touched_1QD: Tensor | None,
        places_BT: Tensor | None,
        documents_BT: Tensor | None,
        cache: Cache | None,
    ) -> Coupling:
        """Tell the cross-attention which image each token sees, and the cache which is the last.

        ``touched_1QD``, an image that no token sees, lets a rank without images have every gradient.
        """
        if places_BT is None:
            places_BT = torch.zeros(embeds_BTD.shape[:2], dtype=torch.bool, device=embeds_BTD.device)
        found, given = int(places_BT.sum()), 0 if features_IQD is None else len(features_IQD)
        if found != given and (given or cache is None):  # a decoded token is what it is
            raise ValueError(
                f"pixel_values bring {given} images, but input_ids hold {found} placeholders (id "
                f"{self.config.image_token_id}); where images are attended to, each takes one"
            )
        if features_IQD is None:
            features_IQD = embeds_BTD.new_zeros(0, 1, embeds_BTD.shape[-1]) if touched_1QD is None else touched_1QD
        if self.config.connector_config.kind == "resampler":  # its factor is one for rows of embeddings
            features_IQD = features_IQD * embeds_BTD.shape[-1] ** 0.5
        features_IQD, held = features_IQD.to(embeds_BTD.dtype), held_by(cache)
        media, kept = see_images(features_IQD, places_BT, documents_BT, held, keep=cache is not None)
        if cache is not None:
            cache.media = kept  # type: ignore[attr-defined]
        return Coupling(self.cross_attention, media)

    def _find_placeholders(self, input_ids_BT: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return ids that all have an embedding, and the places (B, T) of each modality whose placeholder is known."""
        places = {}
        for name, modality in MODALITIES.items():
            token = getattr(self.config, modality.token, None)
            if token is not None:
                places[name] = input_ids_BT == token
                if token >= self.decoder.embed_tokens.num_embeddings:
                    input_ids_BT = input_ids_BT.masked_fill(places[name], 0)
        return input_ids_BT, places

    def _check_ids(self, input_ids_BT: Tensor) -> None:
        # one decoded token a step on a GPU is not worth a synchronisation: the prompt was checked, samples are in range
        if torch.compiler.is_compiling() or not input_ids_BT.numel():
            return
        if input_ids_BT.is_cuda and input_ids_BT.shape[1] == 1:
            return
        low, high = (int(bound) for bound in input_ids_BT.aminmax())
        size = self.decoder.embed_tokens.num_embeddings
        if low < 0 or high >= size:
            tokens = {name: getattr(self.config, modality.token, None) for name, modality in MODALITIES.items()}
            known = ", ".join(f"{name} {token}" for name, token in tokens.items() if token is not None)
            raise ValueError(
                f"input_ids hold {low if low < 0 else high}, but the vocabulary is {size} (placeholders: {known})"
            )

    def _positions_by_id(self, input_ids_BT: Tensor | None) -> Tensor | None:
        """Without a mask KOSMOS-2 knows padding by its id, and does not count it."""
        text_config = self.config.text_config
        counted = getattr(text_config, "position_type", None) == "sinusoidal"
        if input_ids_BT is None or not counted or text_config.pad_token_id is None:
            return None
        return count_positions(input_ids_BT != text_config.pad_token_id)

    def find_places(self, modality: Modality, inputs_embeds: Tensor) -> Tensor:
        """Find placeholders among embeddings, as prompt tuning needs; the placeholder must have an embedding."""
        embedding, token = self.decoder.embed_tokens, getattr(self.config, modality.token, None)
        if token is None or token >= embedding.num_embeddings:
            raise ValueError(
                f"inputs_embeds with {modality.inputs[0]}: placeholder {token} has no embedding to be recognised by "
                f"(vocabulary {embedding.num_embeddings}); resize_token_embeddings, or pass input_ids"
            )
        return (inputs_embeds == embedding(torch.tensor(token, device=inputs_embeds.device))).all(-1)

    def _write(self, modality: Modality, embeds_BTD: Tensor, places: Tensor | None, features: Tensor) -> Tensor:
        """Replace embeddings by the features in row-major order; ``places`` (B, T) booleans or (N,) flat indices."""
        flat_ND = features.flatten(0, -2)
        if torch.compiler.is_exporting() and places is not None:
            # a graph has no number of placeholders to compare: each takes the feature of its turn
            turn_N = (places.flatten().long().cumsum(0) - 1).clamp(0, len(flat_ND) - 1)
            taken_BTD = flat_ND[turn_N].to(embeds_BTD.dtype).view_as(embeds_BTD)
            return torch.where(places[..., None], taken_BTD, embeds_BTD)
        index = flat_ND.new_zeros(0) if places is None else places
        if index.dtype == torch.bool:
            index = index.flatten().nonzero().squeeze(1)
        if len(index) != len(flat_ND):
            several = features.ndim == 3
            what = f"{modality.name}s of {features.shape[1]} features" if several else f"{modality.name} tokens"
            raise ValueError(
                f"{modality.inputs[0]} bring {len(features)} {what}, that is {len(flat_ND)} features, "
                f"but input_ids hold {len(index)} placeholders (id {getattr(self.config, modality.token, None)})"
            )
        flat = embeds_BTD.flatten(0, 1).index_copy(0, index, flat_ND.to(embeds_BTD.dtype))
        return flat.view_as(embeds_BTD)

    def _refuse_unfilled(self, modality: Modality, places_BT: Tensor) -> None:
        if not torch.compiler.is_compiling() and (count := int(places_BT.sum())):
            raise ValueError(
                f"input_ids hold {count} placeholders (id {getattr(self.config, modality.token)}), "
                f"but no {modality.inputs[0]} were given to fill them"
            )

    def _touch(self, modality: Modality) -> Tensor:
        """Read the modality's smallest input and return zero, so that every rank has every gradient."""
        return self.encode(modality, **modality.smallest(self.config, self.device)).sum() * 0.0


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

    def get_image_features(self, pixel_values: Tensor) -> Tensor:
        """Normalised pixels (I, 3, S, S) to unscaled decoder inputs (I, Q, D)."""
        return self.model.get_image_features(pixel_values)

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """As everywhere in transformers; a processor that was saved to the folder before gives its rules of writing."""
        self.take_rules_of(save_directory)
        super().save_pretrained(save_directory, *args, **kwargs)

    def load_vision_weights(self, path: str | Path) -> None:
        """Load the vision tower's weights from a local file or folder, see encoder_weights.py."""
        load_encoder_weights(self.model.vision_tower, path)

    def load_weights(self, modality: str, path: str | Path) -> None:
        """Load the weights of a modality's encoder, by its name in ``MODALITIES``, from a local file or folder.

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
                by the names that ``MODALITIES`` has: of text spans, ids and mask (S, L) of the text encoder.

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
        outputs = self.model(
            input_ids, attention_mask, position_ids, past_key_values, inputs_embeds, document_ids=document_ids,
            block_ids=block_ids, position_in_span=position_in_span, pixel_values=pixel_values, layout=layout, **kwargs,
        )  # fmt: skip
        targets = shift(labels) if shift_labels is None and labels is not None else shift_labels
        if skip_logits is None:
            skip_logits = shift_labels is not None or (labels is not None and self.training)
        loss = TokenLoss(None, None)
        if targets is not None:
            weight = self.lm_head.weight
            known = None if layout is None or shift_labels is None else layout.supervised
            loss = cross_entropy(
                outputs.last_hidden_state, weight, targets, loss_weight, num_items_in_batch, supervised_N=known
            )
        entities = EntityOutput()
        if getattr(self.model, "entity_encoder", None) is not None and input_ids is not None:
            divisor = num_items_in_batch if loss_weight is None or num_items_in_batch is not None else loss_weight.sum()
            entities = read_entities(self, outputs.last_hidden_state, input_ids, kwargs, divisor)
            if loss.loss is not None and entities.loss is not None:
                loss = loss._replace(loss=loss.loss + entities.loss)
        output = self._output(outputs, loss, None if skip_logits else logits_to_keep)
        output.ratings, output.entity_losses = entities.ratings, entities.parts
        return output

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
