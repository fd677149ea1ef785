"""The model side of evaluation: encode images once, encode shared prompt beginnings once, and write behind them.

A prompt is read in stages (demonstrations, query image, question). Prompts of a batch that agree up to a stage share
one computation of it: the cached keys and values of the shorter batch are repeated for the rows that continue it.
Left padding inside a stage is masked and takes no position, so every row computes what it would compute alone.
Answers are written by the loop of ``generate()`` (kosmos/sampling.py), by the rules that the checkpoint brings.
"""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image as Pictures
from PIL import UnidentifiedImageError
from torch import Tensor, nn
from transformers.generation import EosTokenCriteria, MaxLengthCriteria, StoppingCriteriaList

from kosmos.decode_step import GrowingCache
from kosmos.modalities import SPAN
from kosmos.sampling import Forbid, Picker, Place, write
from kosmos.segments import Encoded, Image, Span, Text

from .data import content_hash
from .prompts import Prompt, Segment
from .tasks import Decoding

_IMAGE_BATCH = 64


@dataclass(frozen=True)
class Stage:
    """One part of a prompt: token ids with placeholders, and the images and encoder ids that fill them, in order."""

    ids: tuple[int, ...]
    images: tuple[Path, ...] = ()
    spans: tuple[tuple[int, ...], ...] = ()

    def __add__(self, other: Stage) -> Stage:
        return Stage(self.ids + other.ids, self.images + other.images, self.spans + other.spans)

    @property
    def key(self) -> tuple[object, ...]:
        """Equal for equal content."""
        return self.ids, tuple(content_hash(path) for path in self.images), self.spans


@dataclass
class State:
    """What the model remembers of B rows: cached keys and values of P places, which places count, the next position."""

    cache: GrowingCache
    mask_BP: Tensor
    next_B: Tensor

    def select(self, rows: Tensor) -> State:
        """A copy with the given rows, repeated or left out as the index says."""
        return State(self.cache.select(rows), self.mask_BP[rows], self.next_B[rows])


class Runner:
    """A model and its processor, ready to read prompts.

    Args:
        model: KosmosForConditionalGeneration.
        processor: KosmosProcessor.
        feature_bytes: how much memory image features may take; the least recently used go first.
    """

    def __init__(self, model: Any, processor: Any, feature_bytes: int = 2 << 30) -> None:
        self.model, self.processor = model, processor
        self.device = next(model.parameters()).device
        self.dtype = model.get_input_embeddings().weight.dtype
        tokenizer = processor.tokenizer
        self.bos, self.pad, self.eos = tokenizer.bos_token_id, tokenizer.pad_token_id, tokenizer.eos_token_id
        model.take_rules(processor)
        self.ends = model.ends()
        self.max_length = processor.max_length or model.config.text_config.max_position_embeddings
        self.encoded_images = 0
        self._features: OrderedDict[str, Tensor] = OrderedDict()
        self._feature_bytes = feature_bytes
        self._encoded: dict[Segment, Encoded] = {}

    def text_ids(self, text: str) -> tuple[int, ...]:
        """Token ids of one text segment."""
        return tuple(self._encode(text).ids)

    def decode(self, ids: Sequence[int]) -> str:
        """The answer that generated ids spell."""
        return self.processor.tokenizer.decode(list(ids), skip_special_tokens=True).strip()

    def stages(self, prompt: Prompt) -> list[Stage]:
        """The prompt's stages; the first begins with ``<s>``."""
        stages, current = [], Stage((self.bos,))
        for index, segment in enumerate(prompt.segments):
            if index in prompt.cuts:
                stages.append(current)
                current = Stage(())
            current += self._stage(segment)
        return [stage for stage in [*stages, current] if stage.ids]

    def _stage(self, segment: Segment) -> Stage:
        if isinstance(segment, Span) and self.model.config.span_token_id is None:
            raise ValueError(f"the prompt has a span ({segment.text[:40]!r}), but the model has no text encoder for it")
        encoded = self._encode(segment)
        payloads = [(placed.modality, placed.payload) for placed in encoded.placed]
        images = tuple(payload for name, payload in payloads if name == "image")
        return Stage(tuple(encoded.ids), images, tuple(tuple(ids.tolist()) for name, ids in payloads if name == "span"))

    def _encode(self, segment: Segment) -> Encoded:
        """What the processor writes for one segment; kept, since demonstrations and candidates come again."""
        if segment not in self._encoded:
            made = {str: Text, Path: Image}
            own = next((make(segment) for kind, make in made.items() if isinstance(segment, kind)), segment)
            self._encoded[segment] = self.processor.encode([own])
        return self._encoded[segment]

    def length(self, prompt: Prompt) -> int:
        """Tokens of the whole prompt."""
        return sum(len(stage.ids) for stage in self.stages(prompt))

    def image_features(self, paths: Sequence[Path]) -> Tensor:
        """The connector's output for each image, (N, Q, D); each distinct image is encoded once.

        Raises:
            ValueError: a file that is no readable image.
        """
        keys = [content_hash(path) for path in paths]
        missing = {key: path for key, path in zip(keys, paths, strict=True) if key not in self._features}
        fresh: dict[str, Tensor] = {}
        names = list(missing)
        for start in range(0, len(names), _IMAGE_BATCH):
            batch = names[start : start + _IMAGE_BATCH]
            pixels = torch.stack([self._pixels(missing[key]) for key in batch]).to(self.device)
            features = self.model.get_image_features(self.processor.image_processor.normalize(pixels).to(self.dtype))
            fresh |= dict(zip(batch, features, strict=True))
        self.encoded_images += len(fresh)
        stacked = torch.stack([fresh[key] if key in fresh else self._features[key] for key in keys])
        self._remember(keys, fresh)
        return stacked

    @torch.no_grad()
    def image_embeddings(self, paths: Sequence[Path]) -> Tensor:
        """One vector an image, (N, W): the mean of the vision tower's tokens, for finding similar images."""
        vectors = []
        for start in range(0, len(paths), _IMAGE_BATCH):
            pixels = torch.stack([self._pixels(path) for path in paths[start : start + _IMAGE_BATCH]]).to(self.device)
            normalised = self.processor.image_processor.normalize(pixels).to(self.dtype)
            vectors.append(self.model.model.vision_tower(normalised).float().mean(dim=1).cpu())
        return torch.cat(vectors)

    def _pixels(self, path: Path) -> Tensor:
        try:
            with Pictures.open(path) as image:
                return self.processor.image_processor.to_tensor(image)
        except (UnidentifiedImageError, OSError, ValueError, Pictures.DecompressionBombError) as error:
            raise ValueError(
                f"{path}: not a readable image ({error}); evaluation skips nothing, mend or remove it"
            ) from error

    def _remember(self, keys: Sequence[str], fresh: dict[str, Tensor]) -> None:
        for key in keys:
            if key in self._features:
                self._features.move_to_end(key)
        self._features.update((key, value.clone()) for key, value in fresh.items())
        if self._features:
            size = next(iter(self._features.values())).nbytes
            while len(self._features) * size > self._feature_bytes and len(self._features) > 1:
                self._features.popitem(last=False)

    def extend(self, state: State | None, stages: Sequence[Stage], keep: int = 1) -> tuple[State, Tensor]:
        """Read one more stage of each row after ``state`` (None: from the start).

        Returns:
            The state after it, which takes over ``state``'s memory, and the logits (B, keep, V) fp32 of the last
            places; none at all for ``keep=0``.
        """
        ids_BT, mask_BT = self._pad(stages)
        embeds_BTD = self._embed(ids_BT, stages)
        return self._forward(state, embeds_BTD, mask_BT, keep)

    def write(
        self, state: State, logits_BV: Tensor, decoding: Decoding, seeds: Sequence[int], ends: Collection[int]
    ) -> list[list[int]]:
        """Write behind ``state``, which is used up; the ids of each row without what ended it.

        Args:
            state: what was read.
            logits_BV: the next token's.
            decoding: ``greedy`` or ``sample``.
            seeds: one for each row, for ``sample``.
            ends: tokens that end an answer.
        """
        step, head = self.model.step_and_head()
        never = self.model.never_written(self.model.generation_config.suppress_tokens)
        picker = Picker(head, [Forbid(never, self.device)] if never else [])
        if decoding.method == "sample":
            picker = Nucleus(head, picker.processors, decoding, seeds)
        mask_BP = None if state.mask_BP.all() else state.mask_BP
        place = Place(state.next_B[:, None] - 1, mask_BP, state.cache)
        criteria = StoppingCriteriaList([MaxLengthCriteria(decoding.max_new_tokens), EosTokenCriteria(sorted(ends))])
        nothing = torch.empty(len(seeds), 0, dtype=torch.long, device=self.device)
        pad = torch.tensor(self.pad, device=self.device)
        return _without_ends(write(self.model, step, picker, nothing, logits_BV, place, criteria, pad), ends)

    def log_likelihoods(self, windows: Sequence[Sequence[int]]) -> list[float]:
        """Log-probability (nats) of each run of token ids after ``<s>``; no logits are kept."""
        ids_BT, mask_BT = self._pad([Stage((self.bos, *window[:-1])) for window in windows])
        labels_BT = torch.full_like(ids_BT, -100)
        for row, window in enumerate(windows):
            labels_BT[row, labels_BT.shape[1] - len(window) :] = torch.tensor(window, device=self.device)
        positions_BT = (mask_BT.cumsum(1) - 1).clamp(min=0)
        output = self.model(
            input_ids=ids_BT, attention_mask=mask_BT, position_ids=positions_BT, shift_labels=labels_BT, use_cache=False
        )
        return [-float(total) for total in output.token_loss.double().sum(dim=1)]

    def beam(
        self,
        rows: Sequence[Stage],
        decoding: Decoding,
        allowed: Callable[[list[int]], list[int]] | None,
        ends: Collection[int],
    ) -> list[list[int]]:
        """Beam search by ``model.generate``; the ids written for each row, without what ended them.

        Args:
            rows: the prompts.
            decoding: number of beams, length penalty, longest answer.
            ends: tokens that end an answer.
            allowed: which tokens may follow the ones written so far; None: any.
        """
        ids_BT, mask_BT = self._pad(rows)
        images = [path for stage in rows for path in stage.images]
        pixels = torch.stack([self._pixels(path) for path in images]).to(self.device) if images else None
        spans = [ids for stage in rows for ids in stage.spans]
        length = ids_BT.shape[1]
        output_BT = self.model.generate(
            **(self._span_inputs(spans) if spans else {}),
            input_ids=ids_BT,
            attention_mask=mask_BT,
            pixel_values=None if pixels is None else self.processor.image_processor.normalize(pixels).to(self.dtype),
            do_sample=False,
            num_beams=decoding.num_beams,
            length_penalty=decoding.length_penalty,
            max_new_tokens=decoding.max_new_tokens,
            eos_token_id=sorted(ends),
            prefix_allowed_tokens_fn=None if allowed is None else lambda _, ids_T: allowed(ids_T[length:].tolist()),
        )
        return _without_ends(output_BT[:, length:], {*ends, self.pad})

    def _pad(self, rows: Sequence[Stage]) -> tuple[Tensor, Tensor]:
        """Left-padded ids and mask (B, T)."""
        longest = max(len(stage.ids) for stage in rows)
        ids_BT = torch.full((len(rows), longest), self.pad)
        mask_BT = torch.zeros_like(ids_BT)
        for row, stage in enumerate(rows):
            ids_BT[row, longest - len(stage.ids) :] = torch.tensor(stage.ids, dtype=torch.long)
            mask_BT[row, longest - len(stage.ids) :] = 1
        return ids_BT.to(self.device), mask_BT.to(self.device)

    def _embed(self, ids_BT: Tensor, stages: Sequence[Stage]) -> Tensor:
        """Embeddings (B, T, D) with the features of images and spans in their places."""
        images = [path for stage in stages for path in stage.images]
        spans = [ids for stage in stages for ids in stage.spans]
        image_BT = ids_BT == self._place(self.model.config.image_token_id)
        span_BT = ids_BT == self._place(self.model.config.span_token_id)
        embeds_BTD = self.model.get_input_embeddings()(ids_BT.masked_fill(image_BT | span_BT, self.pad))
        if images or spans:
            embeds_BTD = embeds_BTD.clone()
        if images:
            embeds_BTD[image_BT] = self.image_features(images).flatten(0, 1).to(embeds_BTD.dtype)
        if spans:
            embeds_BTD[span_BT] = self._span_features(spans).to(embeds_BTD.dtype)
        return embeds_BTD

    @staticmethod
    def _place(token: int | None) -> int:
        return -1 if token is None else token

    def _span_features(self, spans: Sequence[tuple[int, ...]]) -> Tensor:
        """Features of all spans in order, (N, D); equal spans of a batch are encoded once."""
        unique = list(dict.fromkeys(spans))
        features_ND = self.model.model.get_span_features(**self._span_inputs(unique)).flatten(0, -2)
        slots = SPAN.places(self.processor, {SPAN.inputs[0]: unique})
        by_span = dict(zip(unique, features_ND.split(slots), strict=True))
        return torch.cat([by_span[ids] for ids in spans])

    def _span_inputs(self, spans: Sequence[tuple[int, ...]]) -> dict[str, Tensor]:
        """Right-padded encoder input (S, L) and its mask."""
        stacked = SPAN.stack([np.array(ids) for ids in spans])
        return {name: tensor.to(self.device) for name, tensor in stacked.items()}

    def _forward(self, state: State | None, embeds_BTD: Tensor, mask_BT: Tensor, keep: int) -> tuple[State, Tensor]:
        if state is None:
            mask_BP, next_B = mask_BT, torch.zeros(len(mask_BT), dtype=torch.long, device=self.device)
        else:
            mask_BP, next_B = torch.cat([state.mask_BP, mask_BT], dim=1), state.next_B
        positions = (next_B[:, None] + mask_BT.cumsum(1) - 1).clamp(min=0)
        output = self.model(
            inputs_embeds=embeds_BTD,
            attention_mask=mask_BP,
            position_ids=positions,
            past_key_values=state.cache if state is not None else GrowingCache(self.model.config.get_text_config()),
            use_cache=True,
            logits_to_keep=keep,
            skip_logits=not keep,
        )
        after = State(output.past_key_values, mask_BP, next_B + mask_BT.sum(1))
        return after, output.logits.float() if keep else mask_BT.new_empty(len(mask_BT), 0, 0)


class Nucleus(Picker):
    """Temperature and nucleus sampling; each row uses its own random numbers, so that its batch does not matter."""

    def __init__(self, head: nn.Module, processors: Any, decoding: Decoding, seeds: Sequence[int]) -> None:
        super().__init__(head, processors, do_sample=True)
        self.by_row = True
        self.temperature, self.top_p = max(decoding.temperature, 1e-6), decoding.top_p
        self.generators = [random.Random(seed) for seed in seeds]

    def draw(self, scores_NV: Tensor, rows_N: Tensor) -> Tensor:
        """Draw from the likeliest tokens that together have ``top_p``."""
        probabilities, tokens = (scores_NV / self.temperature).softmax(dim=-1).sort(-1, descending=True)
        cumulative = probabilities.cumsum(dim=-1)
        kept = probabilities.masked_fill(cumulative - probabilities >= self.top_p, 0.0).cumsum(dim=-1)
        draws = torch.tensor([self.generators[row].random() for row in rows_N.tolist()], device=scores_NV.device)
        places = torch.searchsorted(kept, (draws * kept[:, -1])[:, None], right=True).clamp(max=kept.shape[-1] - 1)
        return tokens.gather(1, places).squeeze(1)


def _without_ends(written_BT: Tensor, ends: Collection[int]) -> list[list[int]]:
    """The ids of each row up to the first of ``ends``."""
    rows = written_BT.tolist()
    return [row[: next((i for i, token in enumerate(row) if token in ends), len(row))] for row in rows]
