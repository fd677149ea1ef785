"""MFU of training and decoding speed of the 1.6B model on one GPU, in one call.

    python tests/benchmarks/bench_model_gpu.py [--preset kosmos-1] [--rows 8] [--length 2048] [--no-compile]

Training: text rows, bf16, forward, backward and a fused AdamW step; blocks compiled one by one. FLOPs a token are
6 · (decoder layers and output matrix) + 6 · L · d · T (causal attention); the frozen encoder would count forward only,
and takes no part in text rows. MFU is against --peak (989 dense bf16 TFLOP/s, the datasheet of H100 and H200), also
printed with attention counted over the full square (12 · L · d · T, PaLM). Decoding: greedy, 128 tokens with a cache,
against Hugging Face's Kosmos-2 of the same size with random weights. ``--preset tiny --device cpu`` tries the script.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch

from kosmos import KosmosConfig, KosmosForConditionalGeneration
from kosmos.cost import model_cost


def synchronise(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def seconds(run: Callable[[], object], device: str, rounds: int) -> float:
    """Return the median duration of ``run`` after two rounds of warming up."""
    times = []
    for _ in range(rounds + 2):
        synchronise(device)
        start = time.perf_counter()
        run()
        synchronise(device)
        times.append(time.perf_counter() - start)
    return sorted(times[2:])[rounds // 2]


def build(preset: str, device: str) -> KosmosForConditionalGeneration:
    config = KosmosConfig.preset(preset)
    config.text_config.dropout = 0.0
    with torch.device(device):
        return KosmosForConditionalGeneration(config).to(torch.bfloat16)


def train(arguments: argparse.Namespace) -> None:
    device, rows, length = arguments.device, arguments.rows, arguments.length
    model = build(arguments.preset, device).train()
    if not arguments.no_compile:
        for layer in model.model.decoder.layers:
            layer.compile()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=1e-4, betas=(0.9, 0.98), weight_decay=0.01, fused=device == "cuda")
    ids = torch.randint(4, 1000, (rows, length), device=device)

    def step() -> None:
        model(
            input_ids=ids, shift_labels=ids.roll(-1, 1), position_ids=torch.arange(length, device=device)[None]
        ).loss.backward()
        optimiser.step()
        optimiser.zero_grad()

    duration = seconds(step, device, arguments.rounds)
    rate = rows * length / duration
    cost = model_cost(model, length)
    print(f"training, {rows} x {length}: {duration * 1e3:.1f} ms, {rate:,.0f} tokens/s, ", end="")
    for name, flops in (("causal", cost.token_flops), ("full square", cost.token_flops + cost.attention_flops)):
        print(
            f"{rate * flops / 1e12:.0f} TFLOP/s = {100 * rate * flops / arguments.peak / 1e12:.1f} % MFU ({name}); ",
            end="",
        )
    if device == "cuda":
        print(f"peak memory {torch.cuda.max_memory_allocated() / 1e9:.1f} GB", end="")
    print(flush=True)


def decode(arguments: argparse.Namespace) -> None:
    device = arguments.device
    ours = build(arguments.preset, device).eval()
    text, theirs = ours.config.text_config, None
    if not arguments.no_peer:
        from transformers import Kosmos2Config, Kosmos2ForConditionalGeneration

        fields = {"vocab_size": text.vocab_size, "embed_dim": text.hidden_size, "layers": text.num_hidden_layers}
        fields |= {"ffn_dim": text.intermediate_size, "attention_heads": text.num_attention_heads}
        with torch.device(device):
            theirs = Kosmos2ForConditionalGeneration(Kosmos2Config(text_config=fields)).to(torch.bfloat16).eval()
        queries, size = theirs.config.latent_query_num, theirs.config.vision_config.image_size
    for rows in arguments.batches:
        prompt = torch.randint(4, 1000, (rows, 80), device=device)
        options = {"max_new_tokens": 128, "do_sample": False, "eos_token_id": None}
        for cache in ("dynamic", "static"):
            run = lambda: ours.generate(input_ids=prompt, cache_implementation=cache, **options)  # noqa: B023, E731
            rate = rows * 128 / seconds(run, device, 3)
            print(f"decoding, batch {rows}, {cache} cache: {rate:,.0f} tokens/s", flush=True)
        if theirs is not None:
            places = torch.zeros_like(prompt)
            places[:, 2 : 2 + queries] = 1
            pixels = torch.zeros(rows, 3, size, size, device=device, dtype=torch.bfloat16)
            inputs = {"input_ids": prompt, "image_embeds_position_mask": places, "pixel_values": pixels}
            rate = rows * 128 / seconds(lambda: theirs.generate(**inputs, **options), device, 3)  # noqa: B023
            print(f"decoding, batch {rows}, HF Kosmos-2: {rate:,.0f} tokens/s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--preset", default="kosmos-1")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--peak", type=float, default=989.0, help="dense bf16 TFLOP/s of the device")
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--no-peer", action="store_true", help="leave Hugging Face's Kosmos-2 out")
    arguments = parser.parse_args()
    if arguments.device == "cpu" and arguments.preset != "tiny":
        print("no GPU: nothing to measure (--preset tiny --length 256 --no-peer tries the script on the CPU)")
        return
    if arguments.device == "cuda":
        print(torch.cuda.get_device_name(), torch.__version__)
    train(arguments)
    decode(arguments)


if __name__ == "__main__":
    main()
