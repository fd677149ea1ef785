"""Beyond the training length (xPos paper, section 4): xPos with blockwise causal attention holds, sinusoids blow up."""

from __future__ import annotations

import pytest
import torch

from kosmos import KosmosConfig, KosmosForConditionalGeneration

TRAINED, TOKENS = 64, 16


def sequences(rows: int, length: int, seed: int) -> torch.Tensor:
    """A language whose next token depends on the last two, nine times of ten; its entropy is about 0.6 nats."""
    generator = torch.Generator().manual_seed(0)
    table = torch.randint(0, TOKENS, (TOKENS, TOKENS), generator=generator)
    generator.manual_seed(seed)
    out = torch.randint(0, TOKENS, (rows, length), generator=generator)
    surprise = torch.rand(rows, length, generator=generator) < 0.1
    for place in range(2, length):
        predicted = table[out[:, place - 2], out[:, place - 1]]
        out[:, place] = torch.where(surprise[:, place], out[:, place], predicted)
    return out


def trained(position: str) -> KosmosForConditionalGeneration:
    torch.manual_seed(0)
    text = {"vocab_size": TOKENS, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    text |= {"num_attention_heads": 4, "position_type": position, "max_position_embeddings": TRAINED}
    text |= {"blockwise_causal_length": TRAINED if position == "xpos" else None, "pad_token_id": None}
    model = KosmosForConditionalGeneration(KosmosConfig(text_config=text, image_token_id=None)).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(250):
        rows = sequences(16, TRAINED, seed=step + 1)
        for group in optimiser.param_groups:
            group["lr"] = 3e-3 * min(1, (step + 1) / 20) * (1 - step / 250)
        model(input_ids=rows, labels=rows).loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    return model.eval()


@pytest.mark.slow
def test_perplexity_at_four_times_the_length() -> None:
    far = slice(2 * TRAINED, 4 * TRAINED - 1)
    rows = sequences(8, 4 * TRAINED, seed=100_000)
    losses = {}
    for position in ("xpos", "sinusoidal"):
        model = trained(position)
        with torch.no_grad():
            token_loss = model(input_ids=rows, labels=rows).token_loss
        losses[position] = float(token_loss[:, 8:TRAINED].mean()), float(token_loss[:, far].mean())
    (near_xpos, far_xpos), (near_sinusoidal, far_sinusoidal) = losses["xpos"], losses["sinusoidal"]
    assert near_xpos < 1.0, "the model has learned the language"
    assert near_sinusoidal < 1.0, "the model has learned the language"
    assert far_xpos < near_xpos + 0.2, losses
    assert far_sinusoidal > near_sinusoidal + 1.0, losses
