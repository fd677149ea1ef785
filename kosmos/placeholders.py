"""Placeholders: where they stand among the ids, what they lack, and how features take their places.

A placeholder is an id that stands for one feature of an encoder (``MODALITIES``). It need not be in the vocabulary:
such an id is read as another one, whose embedding is then replaced.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .loss import supervised
from .modalities import MODALITIES, Modality
from .positions import count_positions
from .rows import RowLayout, find_packing


class PlaceholderMixin:
    """What ``KosmosModel`` knows of the placeholders in its ids; it needs ``config`` and ``decoder``."""

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

    def _require(self, modality: Modality) -> None:
        if getattr(self, modality.connector, None) is None:
            raise ValueError(f"{modality.inputs[0]} were given, but the model has no {modality.config}")

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

    def _refuse_unfilled(self, modality: Modality, places_BT: Tensor) -> None:
        if not torch.compiler.is_compiling() and (count := int(places_BT.sum())):
            raise ValueError(
                f"input_ids hold {count} placeholders (id {getattr(self.config, modality.token)}), "
                f"but no {modality.inputs[0]} were given to fill them"
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
