"""The model against its peers in one process: training step, peak memory, generation, packed attention.

    python tests/benchmarks/bench_model.py [--only step,memory,generate,sizes,packed,docked] [--rounds 7] [--threads 1]

Setting: decoder d=256, 6 layers, 8 heads, FFN 1024, vocabulary 32,000; 2 rows of 512 tokens with one image of 64 places
each; a small frozen ViT; fp32; no dropout (the fused attention kernels have none). Contenders take turns and the ratio
of the medians of CPU time is printed (wall time would count whoever shares the machine). torchscale takes part where
it is installed: pip install --no-deps torchscale fairscale==0.4.0 (and timm, einops). Peak memory is what one step adds
to a fresh process. Generation is the call that chat makes: greedy, several tokens that end an answer and two that are
never written; 128 tokens behind a prompt of 80 with an image. Beside it stands the time that reading all of the
decoder's fp32 weights once takes here, and ``sizes`` repeats it for decoders as small and as large as the presets tiny
and small. ``docked``: a Llama of this size as our decoder beside transformers' own, text only; four documents in a row,
which the bare model keeps apart by positions that begin anew, and, cheaper, does not keep apart. Numbers with their
machine are in kosmos/README.md.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F


class Size(NamedTuple):
    """A decoder."""

    width: int
    layers: int
    heads: int
    ffn: int
    vocabulary: int

    def megabytes(self) -> float:
        """Bytes of the fp32 matrices that a token meets, in MB."""
        layer = 4 * self.width**2 + 2 * self.width * self.ffn
        return 4 * (self.layers * layer + self.vocabulary * self.width) / 1e6


SIZE = Size(256, 6, 8, 1024, 32000)
SIZES = {"tiny": Size(128, 4, 4, 512, 1024), "small": Size(512, 8, 8, 2048, 32000)}
PLACES, LENGTH, ROWS = 64, 512, 2
VISION = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION |= {"image_size": 224, "patch_size": 16}


def inputs(size: Size = SIZE) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(4, size.vocabulary, (ROWS, LENGTH), generator=generator)
    places = torch.zeros_like(ids)
    places[:, 2 : 2 + PLACES] = 1
    pixels = torch.randn(ROWS, 3, 224, 224, generator=generator)
    return {"ids": ids, "places": places, "pixels": pixels, "labels": ids.masked_fill(places.bool(), -100)}


def ours(size: Size = SIZE) -> torch.nn.Module:
    from kosmos import KosmosConfig, KosmosForConditionalGeneration

    text = {"vocab_size": size.vocabulary, "hidden_size": size.width, "intermediate_size": size.ffn}
    text |= {"num_hidden_layers": size.layers, "num_attention_heads": size.heads, "max_position_embeddings": 1024}
    config = KosmosConfig(
        text_config=text,
        vision_config={"backend": "clip", "model_config": VISION},
        connector_config={"kind": "xconnector", "num_queries": PLACES},
        image_token_id=size.vocabulary,
    )
    return KosmosForConditionalGeneration(config)


def kosmos2(size: Size = SIZE) -> torch.nn.Module:
    from transformers import Kosmos2Config, Kosmos2ForConditionalGeneration

    text = {"vocab_size": size.vocabulary, "embed_dim": size.width, "layers": size.layers, "ffn_dim": size.ffn}
    text |= {"attention_heads": size.heads, "max_position_embeddings": 1024, "dropout": 0.0, "attention_dropout": 0.0}
    model = Kosmos2ForConditionalGeneration(
        Kosmos2Config(text_config=text, vision_config=VISION, latent_query_num=PLACES)
    )
    model.vision_model.requires_grad_(False)
    return model


def torchscale(size: Size = SIZE) -> torch.nn.Module:
    """torchscale's decoder; our tower and connector feed it, as it has none."""
    from torchscale.architecture.config import DecoderConfig
    from torchscale.architecture.decoder import Decoder

    config = DecoderConfig(
        decoder_embed_dim=size.width, decoder_attention_heads=size.heads, decoder_ffn_embed_dim=size.ffn,
        decoder_layers=size.layers, vocab_size=size.vocabulary, subln=True, xpos_rel_pos=True, no_scale_embedding=False,
        share_decoder_input_output_embed=True,
    )  # fmt: skip

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = torch.nn.Embedding(size.vocabulary, size.width)
            torch.nn.init.normal_(self.embed.weight, std=size.width**-0.5)
            self.decoder = Decoder(config, embed_tokens=self.embed)
            self.eyes = ours(size).model

        def forward(self, ids: torch.Tensor, places: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
            features = self.eyes.get_image_features(pixels).pooler_output
            embeds = self.embed(ids).masked_scatter(places.bool()[..., None], features)
            return self.decoder(ids, token_embeddings=embeds)[0]

    return Model()


def step(name: str) -> Callable[[], None]:
    """Return one forward and backward pass of a contender."""
    batch, model = inputs(), CONTENDERS[name]().train()
    their_ids = batch["ids"]
    our_ids = their_ids.masked_fill(batch["places"].bool(), SIZE.vocabulary)

    def run() -> None:
        model.zero_grad()
        if name == "kosmos":
            loss = model(input_ids=our_ids, pixel_values=batch["pixels"], labels=batch["labels"]).loss
        elif name == "HF Kosmos-2":
            arguments = {"input_ids": their_ids, "pixel_values": batch["pixels"], "labels": batch["labels"]}
            loss = model(**arguments, image_embeds_position_mask=batch["places"]).loss
        else:
            logits = model(their_ids, batch["places"], batch["pixels"])
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten())
        loss.backward()

    return run


def generation(name: str, rows: int, tokens: int, size: Size = SIZE) -> Callable[[], Any]:
    """Return greedy decoding with a cache, as chat calls it; an image and 80 tokens of prompt."""
    batch, model = inputs(size), CONTENDERS[name](size).eval()
    rules = {"eos_token_id": [2, size.vocabulary - 1], "pad_token_id": 1, "suppress_tokens": [7, size.vocabulary - 2]}
    ids, places = batch["ids"][:1, :80].repeat(rows, 1), batch["places"][:1, :80].repeat(rows, 1)
    options: dict[str, Any] = {"pixel_values": batch["pixels"][:1].repeat(rows, 1, 1, 1), "max_new_tokens": tokens}
    if name == "kosmos":
        options["input_ids"] = ids.masked_fill(places.bool(), size.vocabulary)
    else:
        options |= {"input_ids": ids, "image_embeds_position_mask": places}

    def run() -> None:
        length = model.generate(**options, **rules, do_sample=False).shape[1]
        assert length == 80 + tokens, "the random model ended its answer, so the times are not of as many tokens"

    return run


def packed(kind: str, way: str) -> Callable[[], None]:
    """Return attention forward and backward over one row of 2,048 tokens holding 8 documents."""
    from kosmos.attention import attend_runs
    from kosmos.masks import document_mask, document_runs

    documents = torch.arange(8).repeat_interleave(256)[None]
    blocks = torch.where(torch.arange(2048)[None] % 256 < 128, documents, -1) if kind == "prefix" else None
    heads = [torch.randn(1, 2048, 8, 64, requires_grad=True) for _ in range(3)]
    runs, mask = document_runs(documents, blocks), document_mask(documents, blocks)[:, None]

    def run() -> None:
        if way == "documents":
            out = attend_runs(*heads, runs, 0.125)
        else:
            out = F.scaled_dot_product_attention(*(h.transpose(1, 2) for h in heads), attn_mask=mask, scale=0.125)
        out.sum().backward()

    return run


def docked(way: str) -> Callable[[], None]:
    """Return one forward and backward pass over packed text of a Llama, as our decoder or bare."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from kosmos import KosmosConfig, KosmosForConditionalGeneration

    width, layers, heads, ffn, vocabulary = SIZE
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=width, intermediate_size=ffn, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=heads // 2, max_position_embeddings=2048,
        tie_word_embeddings=True,
    )  # fmt: skip
    ids = inputs()["ids"]
    documents = torch.arange(LENGTH).expand(ROWS, -1) // (LENGTH // 4)
    positions = torch.arange(LENGTH).expand(ROWS, -1) % (LENGTH // 4)
    given: dict[str, Any] = {"input_ids": ids, "labels": ids}
    if way == "docked":
        model: Any = KosmosForConditionalGeneration(KosmosConfig(text_config=config.to_dict()))
        given |= {"document_ids": documents, "position_ids": positions}
    else:
        model = LlamaForCausalLM(config)
        given |= {"position_ids": positions} if way == "bare" else {}
    model.train()

    def run() -> None:
        model.zero_grad()
        model(**given).loss.backward()

    return run


def compare(title: str, contenders: dict[str, Callable[[], Any]], rounds: int, unit: float = 1.0) -> None:
    """Run all in turns; print milliseconds and how many times faster the first is than each other."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for run in contenders.values():
        run()
    for _ in range(rounds):
        for name, run in contenders.items():
            start = time.process_time()
            run()
            times[name].append((time.process_time() - start) * 1e3 / unit)
    medians = {name: statistics.median(values) for name, values in times.items()}
    first = next(iter(medians))
    print(f"{title}: {first} {medians[first]:.2f} ms", end="")
    for name, median in list(medians.items())[1:]:
        best = min(times[name]) / min(times[first])
        print(f"; {name} {median:.2f} ms, ratio {median / medians[first]:.2f} (of minima {best:.2f})", end="")
    print(flush=True)


def peak(name: str) -> float:
    """Return MiB that one step adds at its peak to a fresh process's resident memory (Linux)."""
    run = step(name)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of building the model
    before = resident("VmRSS")
    run()
    return (resident("VmHWM") - before) / 1024


def resident(field: str) -> int:
    """Return a field of this process's status in KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(field)))


def decode(title: str, size: Size, rounds: int) -> None:
    """Compare generation at batch 1 and 8, and print how long reading the weights takes."""
    matrix = torch.randn(2**14, 2**10)
    vector, best = torch.randn(2**10), float("inf")
    for _ in range(20):
        start = time.process_time()
        torch.mv(matrix, vector)
        best = min(best, time.process_time() - start)
    rate = 4 * matrix.numel() / best / 1e9
    size_mb = size.megabytes()
    print(f"{title}: all weights, {size_mb:.0f} MB, are read in {size_mb / rate:.2f} ms at {rate:.0f} GB/s", flush=True)
    for rows in (1, 8):
        runs = {name: generation(name, rows, 128, size) for name in ("kosmos", "HF Kosmos-2")}
        compare(f"{title}, batch {rows}, per token", runs, max(rounds // 2, 1), unit=128)


CONTENDERS: dict[str, Callable[..., torch.nn.Module]] = {"kosmos": ours, "HF Kosmos-2": kosmos2}
if importlib.util.find_spec("torchscale"):
    CONTENDERS["torchscale"] = torchscale


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default="step,memory,generate,sizes,packed,docked")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.peak:
        print(peak(arguments.peak))
        return
    only = arguments.only.split(",")
    if "step" in only:
        compare("training step", {name: step(name) for name in CONTENDERS}, arguments.rounds)
    if "memory" in only:
        sizes = {}
        for name in CONTENDERS:
            command = [sys.executable, __file__, "--peak", name, "--threads", str(arguments.threads)]
            sizes[name] = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])
        shares = "; ".join(
            f"{name} {size:.0f} MiB, ours is {sizes['kosmos'] / size:.2f}" for name, size in sizes.items()
        )
        print(f"peak memory of a step: {shares}", flush=True)
    if "generate" in only:
        decode("generation", SIZE, arguments.rounds)
    if "sizes" in only:
        for name, size in SIZES.items():
            decode(f"generation, {name}", size, arguments.rounds)
    if "packed" in only:
        for kind in ("causal", "prefix"):
            runs = {way: packed(kind, way) for way in ("documents", "dense mask")}
            compare(f"packed attention, {kind}, 8 documents in 2,048", runs, arguments.rounds)
    if "docked" in only:
        runs = {way: docked(way) for way in ("docked", "bare", "bare, not kept apart")}
        compare("training step of a Llama, 2 rows of 4 documents", runs, arguments.rounds)


if __name__ == "__main__":
    main()
