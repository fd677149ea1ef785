"""The modality of sounds: any audio encoder of transformers (Whisper, AST, wav2vec 2.0 …) with its feature extractor.

::

    file ── media.read_sound ── samples ── feature extractor ── audio_features ── encoder ── connector ── places
            (loader, chat)                 (loader, chat)       (A, *shape)       frozen     num_queries

A sound is read as one window of the encoder's own length (Whisper 30 s, AST 10.24 s), silence behind it as the encoders
were trained; a longer one is refused. The encoder's features of a window are many (Whisper 1,500, AST 1,214), so the
connector has queries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .encoder_configs import KosmosAudioConfig
from .encoders import Encoder, from_description
from .limits import check_sizes, read_object, readable
from .media import file_bytes, read_sound
from .modality import Inputs, Modality, Reader

EXTRACTOR_FILE = "preprocessor_config.json"
SECONDS = 30.0
"""Window of an encoder whose feature extractor names none (wav2vec 2.0 reads raw samples of any length)."""
MOST_SECONDS = 600.0
"""Longest window: what a processor of a stranger may ask to be filled with silence."""
SIZES = {
    "sampling_rate": (1, 1 << 18),
    **dict.fromkeys(("feature_size", "num_mel_bins", "n_fft", "hop_length", "win_length"), (1, 1 << 14)),
    **dict.fromkeys(("chunk_length", "max_length", "nb_max_frames"), (1, 1 << 16)),
    "n_samples": (1, 1 << 28),
}
"""Smallest and largest value of each size of a feature extractor."""


class AudioEncoder(Encoder):
    """An audio encoder of transformers, rebuilt from its config; of an encoder-decoder (Whisper) the encoder."""

    def __init__(self, config: KosmosAudioConfig) -> None:
        super().__init__()
        model: Any = from_description(config.model_config, "audio_config", "whisper")
        assert config.input_shape is not None, "the config reads it from model_config, or refuses"
        self.encoder: Any = model.get_encoder() if model.config.is_encoder_decoder else model
        self.width: int = self.encoder.config.hidden_size
        self.shape = tuple(config.input_shape)
        self.freeze(config.train_last_blocks)
        self.eval()

    def forward(self, audio_features: Tensor) -> Tensor:
        """Return features (A, P, C) of what the feature extractor made of A sounds, (A, *shape).

        Raises:
            ValueError: another shape.
        """
        if tuple(audio_features.shape[1:]) != self.shape:
            raise ValueError(
                f"audio_features have shape {tuple(audio_features.shape)}; the audio encoder takes (sounds, "
                f"{', '.join(map(str, self.shape))})"
            )
        with self.gradients():
            return self.encoder(audio_features.to(next(self.encoder.parameters()).dtype)).last_hidden_state


@dataclass
class AudioReader(Reader):
    """How sounds are read.

    Attributes:
        extractor: what ``preprocessor_config.json`` says of the encoder's feature extractor.
        seconds: longest sound; None: the extractor's own window, or :data:`SECONDS`.
    """

    extractor: dict[str, Any] = field(default_factory=lambda: {"feature_extractor_type": "WhisperFeatureExtractor"})
    seconds: float | None = None

    @classmethod
    def of(cls, folder: Path, **fields: Any) -> AudioReader:
        """Return the settings with the feature extractor of ``folder``.

        Raises:
            FileNotFoundError: the folder describes none.
        """
        path = folder / EXTRACTOR_FILE
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing: it describes the audio encoder's feature extractor")
        return cls(**{"extractor": read_object(path), **fields})

    @cached_property
    def feature_extractor(self) -> Any:
        """transformers' extractor; ValueError where it has none of this name."""
        import transformers

        name = str(self.extractor.get("feature_extractor_type"))
        kind = getattr(transformers, name, None) if name.endswith("FeatureExtractor") else None
        if kind is None or not hasattr(kind, "pad"):
            raise ValueError(f"transformers has no feature extractor of sounds {name!r}; try WhisperFeatureExtractor")
        fields = {key: value for key, value in self.extractor.items() if key != "feature_extractor_type"}
        check_sizes("readers.audio.extractor", fields, SIZES)
        with readable("readers.audio.extractor"):
            return kind(**fields)

    @property
    def window(self) -> float:
        """Seconds that the encoder reads at once."""
        frames = self.extractor.get("max_length")  # AST's, of 10 ms
        given = self.extractor.get("chunk_length") or (frames / 100 if frames else SECONDS)
        seconds = float(given if self.seconds is None else self.seconds)
        if not 0 < seconds <= MOST_SECONDS:
            raise ValueError(f"readers.audio reads {seconds:g} s at once; it may be above 0 and up to {MOST_SECONDS:g}")
        return seconds

    def features(self, data: bytes) -> np.ndarray:
        """Return what the encoder reads of a file of sound, float32 of the model's ``input_shape``.

        Raises:
            Unreadable: see ``media.read_sound``.
        """
        extractor = self.feature_extractor
        rate = extractor.sampling_rate
        sound_N = read_sound(data, rate, self.window)
        made = extractor(
            sound_N,
            sampling_rate=rate,
            padding="max_length",
            max_length=round(self.window * rate),
            truncation=True,
            return_tensors="np",
        )
        return np.asarray(made[extractor.model_input_names[0]][0], dtype=np.float32)


def _payload(processor: Any, sound: Any) -> np.ndarray:
    return processor.reader("audio").features(file_bytes(sound.data, "sound"))


def _stack(sounds: Sequence[np.ndarray]) -> dict[str, Tensor]:
    return {"audio_features": torch.from_numpy(np.stack(sounds))}


def _read(model: Any, audio_features: Tensor) -> Tensor:
    return model.audio_connector(model.audio_encoder(audio_features).to(model.dtype))


def _places(owner: Any, inputs: Inputs) -> list[int]:
    return [owner.places_of("audio")] * len(inputs["audio_features"])


def _silence(config: Any, device: torch.device) -> dict[str, Tensor]:
    return {"audio_features": torch.zeros(1, *config.audio_config.input_shape, device=device)}


AUDIO = Modality(
    name="audio",
    inputs=("audio_features",),
    config="audio_config",
    connector_config="audio_connector_config",
    token="audio_token_id",
    encoder="audio_encoder",
    connector="audio_connector",
    parts=("audio", "audio connector"),
    marks=("<audio>", "<audio_slot>", "</audio>"),
    payload=_payload,
    stack=_stack,
    build=AudioEncoder,
    read=_read,
    places=_places,
    smallest=_silence,
    units=lambda inputs: len(inputs["audio_features"]),
    unit="sound",
    about=lambda config: "An encoder reads sounds.",
    reader=AudioReader,
)
