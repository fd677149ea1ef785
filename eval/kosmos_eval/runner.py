"""The model side of evaluation: encode images once, encode shared prompt beginnings once, and write behind them.

A prompt is read in stages (demonstrations, query image, question). Prompts of a batch that agree up to a stage share
one computation of it: the cached keys and values of the shorter batch are repeated for the rows that continue it.
Left padding inside a stage is masked and takes no position, so every row computes what it would compute alone.
Answers are written by the loop of ``generate()`` (kosmos/sampling.py), by the rules that the checkpoint brings.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers.generation import EosTokenCriteria, MaxLengthCriteria, StoppingCriteriaList

from kosmos.decode_step import GrowingCache
from kosmos.grounding import read_answer
from kosmos.modalities import IMAGE, MODALITIES
from kosmos.sampling import Forbid, Picker, Place, write
from kosmos.segments import Audio, Encoded, Image, Text, Video, modality_name

from .features import Features
from .items import content_hash
from .prompts import Prompt, Segment, file_of
from .stages import Piece, Stage, Written, by_modality
from .tasks import Decoding


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
        feature_bytes: how much memory features may take; the least recently used go first.
        zooms: scales at which each picture is seen; its features are the mean.
    """

    def __init__(
        self, model: Any, processor: Any, feature_bytes: int = 2 << 30, zooms: Sequence[float] = (1.0,)
    ) -> None:
        self.model, self.processor = model, processor
        self.features = Features(model, processor, feature_bytes, zooms)
        self.device = self.features.device
        tokenizer = processor.tokenizer
        self.bos, self.pad, self.eos = tokenizer.bos_token_id, tokenizer.pad_token_id, tokenizer.eos_token_id
        model.take_rules(processor)
        self.ends = model.ends()
        tuned = processor.turn_end == "eos" and processor.answer_ends is None  # a language model's turns are no lines
        self.separator = tokenizer.eos_token if tuned else "\n"
        self.max_length = processor.max_length or model.config.text_config.max_position_embeddings
        self._encoded: dict[Segment, Encoded] = {}

    def text_ids(self, text: str) -> tuple[int, ...]:
        """Token ids of one text segment."""
        return tuple(self._encode(text).ids)

    def ends_behind(self, separator: str) -> frozenset[int]:
        """The tokens that end an answer behind demonstrations: the checkpoint's, and what ends theirs."""
        lines = self.processor.line_end_ids() if separator.startswith("\n") else []
        return self.ends.union(lines, [self.eos] if separator.startswith("</s>") else [])

    def decode(self, ids: Sequence[int]) -> Written:
        """The answer that generated ids spell, and where in the picture its phrases are."""
        text, phrases = read_answer(self.processor, ids)
        written = Written(text)
        written.phrases = phrases
        return written

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
        encoded, pieces = self._encode(segment), []
        for placed in encoded.placed:
            modality = MODALITIES[placed.modality]
            # A picture's places can be counted without a tower; what reads it says that there is none.
            if modality is not IMAGE and getattr(self.model.config, modality.token, None) is None:
                lacks = "text encoder" if modality.tokenizer else f"encoder of {modality.name}"
                raise ValueError(f"the prompt holds {str(segment)[:60]!r}, but the model has no {lacks} for it")
            payload, file = placed.payload, file_of(placed.payload)
            parts = payload if isinstance(payload, tuple) else (payload,)
            own = content_hash(file) if file else b"".join(np.asarray(part).tobytes() for part in parts)
            pieces.append(Piece(placed.modality, own, payload))
        return Stage(tuple(encoded.ids), tuple(pieces))

    def _encode(self, segment: Segment) -> Encoded:
        """What the processor writes for one segment; kept, since demonstrations, candidates and pictures come again.

        Of a picture that is its path and its places, not its pixels.
        """
        if isinstance(segment, Audio | Video):
            return self._of_a_clip(segment)
        if segment not in self._encoded:
            texts = Text(segment) if isinstance(segment, str) else segment
            self._encoded[segment] = self.processor.encode([Image(segment) if isinstance(segment, Path) else texts])
        return self._encoded[segment]

    def _of_a_clip(self, segment: Audio | Video) -> Encoded:
        """The places of a sound or video; its file is read when the encoder needs it, not for all prompts at once."""
        name, encoded = modality_name(segment), Encoded()
        self.processor.reader(name)  # which says so where there is none
        self.processor.place(MODALITIES[name], segment, encoded)
        return encoded

    def length(self, prompt: Prompt) -> int:
        """Tokens of the whole prompt, with ``<s>``."""
        return 1 + sum(len(self._encode(segment).ids) for segment in prompt.segments)

    def extend(
        self, state: State | None, stages: Sequence[Stage], keep: int = 1, written: bool = False
    ) -> tuple[State, Tensor]:
        """Read one more stage of each row after ``state`` (None: from the start).

        Args:
            keep: how many logits are kept; 0: the prompt goes on behind this stage.
            written: the stage is an answer, not a part of the prompt (attention routing tells them apart).

        Returns:
            The state after it, which takes over ``state``'s memory, and the logits (B, keep, V) fp32 of the last
            places; none at all for ``keep=0``.
        """
        ids_BT, mask_BT = self._pad(stages)
        embeds_BTD, attended = self._embed(ids_BT, stages)
        if getattr(self.model.config.text_config, "routing_layers", None):
            attended["writing"] = torch.full_like(mask_BT, written, dtype=torch.bool)
            attended["writing"][:, -1] |= keep > 0
        return self._forward(state, embeds_BTD, mask_BT, keep, attended)

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
        inputs: dict[str, Tensor] = {}
        for modality, pieces in by_modality(rows):
            inputs |= self.features.inputs(modality, pieces)
        length = ids_BT.shape[1]
        output_BT = self.model.generate(
            **inputs,
            input_ids=ids_BT,
            attention_mask=mask_BT,
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
        missing = [longest - len(stage.ids) for stage in rows]
        ids = [[self.pad] * more + list(stage.ids) for more, stage in zip(missing, rows, strict=True)]
        ids_BT = torch.tensor(ids, dtype=torch.long).view(len(rows), longest)
        mask_BT = (torch.arange(longest) >= torch.tensor(missing)[:, None]).long()
        return ids_BT.to(self.device), mask_BT.to(self.device)

    def _embed(self, ids_BT: Tensor, stages: Sequence[Stage]) -> tuple[Tensor, dict[str, Tensor]]:
        """Embeddings (B, T, D) with the features of what encoders read in their places, or beside them.

        Features that cross-attention looks at are returned as the model takes them, (I, Q, D); the embedding of their
        placeholder stays.
        """
        present = list(by_modality(stages))
        places = [ids_BT == getattr(self.model.config, modality.token) for modality, _ in present]
        crossed, attended = self.model.config.coupling == "cross_attention", dict[str, Tensor]()
        for places_BT in places if not crossed else ():  # a placeholder may lie outside the vocabulary
            ids_BT = ids_BT.masked_fill(places_BT, self.pad)
        embeds_BTD = self.model.get_input_embeddings()(ids_BT)
        for (modality, pieces), places_BT in zip(present, places, strict=True):
            features_ND = self.features.of(modality, pieces)
            if crossed and modality is IMAGE:
                attended["image_features"] = features_ND.unflatten(0, (len(pieces), -1))
            else:
                embeds_BTD[places_BT] = features_ND.to(embeds_BTD.dtype)
        return embeds_BTD, attended

    def _forward(
        self, state: State | None, embeds_BTD: Tensor, mask_BT: Tensor, keep: int, attended: dict[str, Tensor]
    ) -> tuple[State, Tensor]:
        if state is None:
            mask_BP, next_B = mask_BT, torch.zeros(len(mask_BT), dtype=torch.long, device=self.device)
        else:
            mask_BP, next_B = torch.cat([state.mask_BP, mask_BT], dim=1), state.next_B
        cache = state.cache if state is not None else GrowingCache(self.model.config.get_text_config())
        positions = (next_B[:, None] + mask_BT.cumsum(1) - 1).clamp(min=0)
        output = self.model(
            inputs_embeds=embeds_BTD,
            attention_mask=mask_BP,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=keep,
            skip_logits=not keep,
            **attended,
        )
        after = State(cache, mask_BP, next_B + mask_BT.sum(1))
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
