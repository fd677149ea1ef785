"""Encoders, connectors and decoder: images and text spans are read by frozen encoders into the decoder's rows.

``KosmosModel`` puts the features of images and spans in their places among the token embeddings and runs the decoder.
KOSMOS-1 (arXiv 2302.14045, section 2) is the case of images, MetaLM (arXiv 2206.06336, section 2) that of text spans.

Features are written into the *unscaled* embeddings, so that sqrt(d) multiplies text and features alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast, BaseModelOutputWithPooling
from transformers.utils.generic import can_return_tuple

from .configuration_kosmos import KosmosConfig, KosmosTextConfig
from .connectors import build_connector
from .cross_attention import Coupling, GatedCrossAttention, couple, held_by, see_images
from .decode_step import GrowingCache
from .decoder import KosmosDecoder, KosmosPreTrainedModel
from .encoder_configs import QUERYING
from .entities import RatingHead
from .modalities import IMAGE, MODALITIES, Modality, input_names
from .placeholders import PlaceholderMixin
from .routing import Asked
from .routing import held_by as routes_of
from .rows import RowLayout
from .transformers_decoder import TransformersDecoder
from .versions import cache_of, either, named


@dataclass
class KosmosModelOutput(BaseModelOutputWithPast):
    """Hidden states of the decoder, and ``image_features`` (I, Q, D), the connector's unscaled output.

    ``alpha`` and ``alpha_logit`` (B, T) are those of attention routing, see decoder.py.
    """

    image_features: Tensor | None = None
    alpha: Tensor | None = None
    alpha_logit: Tensor | None = None


class KosmosModel(PlaceholderMixin, KosmosPreTrainedModel):
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

    @property
    def language_model(self) -> nn.Module:
        """The decoder by the name that engines look for; of a language model of transformers, that model itself."""
        return getattr(self.decoder, "model", self.decoder)

    @can_return_tuple
    def get_image_features(self, pixel_values: Tensor, **_: Any) -> BaseModelOutputWithPooling:
        """Normalised pixels (I, 3, S, S) to unscaled decoder inputs (I, Q, D), which are the ``pooler_output``.

        ``last_hidden_state`` (I, P, C) is what the vision tower made.

        Raises:
            ValueError: the model has no vision tower.
        """
        self._require(IMAGE)
        features_IPC = self.vision_tower(pixel_values)
        return BaseModelOutputWithPooling(
            last_hidden_state=features_IPC, pooler_output=self.connector(features_IPC.to(self.dtype))
        )

    def encode(self, modality: Modality, **inputs: Tensor | None) -> Tensor:
        """Read inputs of one modality and return unscaled decoder inputs, (I, Q, D) or end to end (N, D).

        Raises:
            ValueError: the model has no such encoder.
        """
        self._require(modality)
        return modality.read(self, **inputs)

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
        attended, touched = bool(self.config.cross_layers()), None
        # One modality after the other, each written or touched before the next is read: backward runs in the opposite
        # order, the same on every rank, whatever its rows hold (modalities.py says what would happen otherwise).
        for modality in MODALITIES.values():
            looked_at = attended and modality is IMAGE
            if given := modality.given(inputs):
                known = {} if layout is None else layout.indices.get(modality.name, {})
                features[modality.name] = self.encode(modality, **given, **known)
            if modality.name in features:
                if input_ids is None:
                    places[modality.name] = self.find_places(modality, inputs_embeds)
                if not looked_at:
                    where = places.get(modality.name) if layout is None else layout.places[modality.name]
                    inputs_embeds = self._write(modality, inputs_embeds, where, features[modality.name])
                continue
            if modality.name in places and fresh and layout is None:
                self._refuse_unfilled(modality, places[modality.name])
            if dummy_image and looked_at:
                touched = self._smallest(modality)
            elif dummy_image and getattr(self, modality.connector, None) is not None:
                inputs_embeds = inputs_embeds + self._smallest(modality).sum() * 0.0
        if all(given is None for given in (position_ids, attention_mask, past_key_values, kwargs.get("document_ids"))):
            position_ids = self._positions_by_id(input_ids)
        if attended:
            past_key_values = self._cache(past_key_values, kwargs)
            documents = kwargs.get("document_ids")
            kwargs["coupling"] = self._couple(
                inputs_embeds, features.get("image"), touched, places.get("image"), documents, past_key_values
            )
        past_key_values = self._ask(places, past_key_values, kwargs)
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
            alpha=getattr(outputs, "alpha", None),
            alpha_logit=getattr(outputs, "alpha_logit", None),
        )

    def _ask(self, places: dict[str, Tensor], cache: Cache | None, options: dict[str, Any]) -> Cache | None:
        """Tell routed layers, as ``asked`` among the options, where personas may be; return the cache of this pass.

        Raises:
            ValueError: alpha or writing without such layers, or a cache that cannot hold what they keep.
        """
        given = {name: options.pop(name) for name in ("writing", "alpha") if name in options}
        if not self.config.is_routed:
            if named := [name for name, value in given.items() if value is not None]:
                raise ValueError(f"{named[0]} was given, but the model has no text_config.routing_layers")
            return cache
        personas = {name for name, modality in MODALITIES.items() if modality.persona}
        found = [places[name] for name in places if name in personas]
        persona_BT = torch.stack(found).any(0) if found else None
        options["asked"] = Asked(persona_BT, given.get("writing"), given.get("alpha"))
        routes_of(cache)
        return GrowingCache(self.config.get_text_config()) if cache is None and options.get("use_cache") else cache

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

    def _smallest(self, modality: Modality) -> Tensor:
        """Read the modality's smallest input, which no token sees, so that every rank has every gradient."""
        return self.encode(modality, **modality.smallest(self.config, self.device))
