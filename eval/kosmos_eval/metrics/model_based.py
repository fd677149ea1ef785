"""Metrics that a model computes: CLIPScore by any open_clip model, BERTScore by any local text encoder.

CLIPScore (Hessel et al. 2021): 2.5 · max(cos(image, caption), 0), no references; RefCLIPScore is its harmonic mean
with the best cosine to a reference. BERTScore (Zhang et al. 2020): greedy matching of token vectors, F1, the best
over references, no idf weights and no baseline rescaling, last layer. Both depend on the model as much as on the
captions: name it with the number.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from kosmos.pictures import on_white, open_picture

_BATCH = 64
_CLIP_WEIGHT = 2.5
CLIP_PREFIX = "A photo depicts "


class ClipScorer:
    """An open_clip model as a judge.

    Args:
        clip: a folder in open_clip's layout, or an open_clip name with ``pretrained`` weights already in the cache.
        processor: folder of the Kosmos processor whose tokenizer the CLIP was trained with (``kosmos vision``); None:
            the tokenizer that open_clip gives. prefix: put before every caption (the paper's by default).
    """

    def __init__(self, clip: str | Path, processor: str | Path | None = None, prefix: str = CLIP_PREFIX) -> None:
        import open_clip

        name = f"local-dir:{clip}" if Path(clip).is_dir() else str(clip)
        self.model, self.transform = open_clip.create_model_from_pretrained(name)
        self.model.eval()
        self.prefix = prefix
        self.tokenize: Callable[[list[str]], Tensor]
        if processor is None:
            self.tokenize = open_clip.get_tokenizer(name)
        else:
            self.tokenize = _kosmos_tokenizer(processor, self.model.context_length)

    @torch.no_grad()
    def score(
        self, images: Sequence[Path], captions: Sequence[str], references: Sequence[Sequence[str]] = ()
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """CLIPScore of each image and caption, (N,), and RefCLIPScore if references are given."""
        pictures, texts = self._images(images), self._texts(captions)
        clip = _CLIP_WEIGHT * (pictures * texts).sum(-1).clamp(min=0).numpy()
        if not references:
            return clip, None
        best = []
        for text, refs in zip(texts, references, strict=True):
            best.append(float((self._texts(refs) @ text).max().clamp(min=0)))
        both = np.asarray(best)
        total = clip + both
        return clip, np.divide(2 * clip * both, total, out=np.zeros_like(total), where=total > 0)

    def _images(self, paths: Sequence[Path]) -> Tensor:
        chunks = []
        for start in range(0, len(paths), _BATCH):
            pixels = []
            for path in paths[start : start + _BATCH]:
                pixels.append(self.transform(on_white(open_picture(path))))
            chunks.append(normalize(self.model.encode_image(torch.stack(pixels)), dim=-1))
        return torch.cat(chunks)

    def _texts(self, captions: Sequence[str]) -> Tensor:
        texts = [self.prefix + caption for caption in captions]
        chunks = [self.tokenize(texts[start : start + _BATCH]) for start in range(0, len(texts), _BATCH)]
        return torch.cat([normalize(self.model.encode_text(ids), dim=-1) for ids in chunks])


def _kosmos_tokenizer(processor: str | Path, length: int) -> Callable[[list[str]], Tensor]:
    from kosmos.processing_kosmos import load_processor

    kosmos = load_processor(processor)
    tokenizer = kosmos.tokenizer

    def tokenize(texts: list[str]) -> Tensor:
        ids = torch.full((len(texts), length), tokenizer.pad_token_id)
        for row, text in enumerate(texts):
            tokens = [tokenizer.bos_token_id, *kosmos.encode_text(text)[: length - 2], tokenizer.eos_token_id]
            ids[row, : len(tokens)] = torch.tensor(tokens)
        return ids

    return tokenize


class BertScorer:
    """A BERT-like encoder in a local folder as a judge."""

    def __init__(self, encoder: str | Path) -> None:
        from transformers import AutoModel, AutoTokenizer

        if not Path(encoder).is_dir():
            raise FileNotFoundError(f"{encoder}: no such folder with a text encoder")
        self.tokenizer: Any = AutoTokenizer.from_pretrained(encoder)
        self.model = AutoModel.from_pretrained(encoder).eval()

    @torch.no_grad()
    def score(self, candidates: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
        """F1 of each candidate against its best reference, (N,)."""
        texts = list(dict.fromkeys([*candidates, *(ref for refs in references for ref in refs)]))
        vectors = dict(zip(texts, self._vectors(texts), strict=True))
        return np.array(
            [
                max(_greedy_f1(vectors[candidate], vectors[ref]) for ref in refs)
                for candidate, refs in zip(candidates, references, strict=True)
            ]
        )

    def _vectors(self, texts: Sequence[str]) -> list[Tensor]:
        """Unit token vectors (tokens, D) of each text, special tokens left out."""
        vectors = []
        for start in range(0, len(texts), _BATCH):
            batch = self.tokenizer(
                list(texts[start : start + _BATCH]), padding=True, truncation=True, return_tensors="pt",
                return_special_tokens_mask=True,
            )  # fmt: skip
            special = batch.pop("special_tokens_mask").bool()
            hidden = normalize(self.model(**batch).last_hidden_state.float(), dim=-1)
            vectors += [row[~mask] for row, mask in zip(hidden, special, strict=True)]
        return vectors


def _greedy_f1(candidate: Tensor, reference: Tensor) -> float:
    if not len(candidate) or not len(reference):
        return 0.0
    similarity = candidate @ reference.T
    precision, recall = float(similarity.max(dim=1).values.mean()), float(similarity.max(dim=0).values.mean())
    return 2 * precision * recall / (precision + recall) if precision + recall > 0 else 0.0
