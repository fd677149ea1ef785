"""Tuning methods against PEFT itself, against formulas written out here, and through their files."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from kosmos import KosmosForConditionalGeneration
from kosmos.tuning import Tuning, attach, load_adapter, load_tuned, save_adapter, use
from kosmos.tuning.merge import merge

PEFT_TUNINGS = [
    Tuning("lora", rank=4, alpha=8),
    Tuning("lora", rank=4, dora=True),
    Tuning("lora", rank=4, rslora=True, targets=["q_proj", "*layers.1.ffn.fc?"]),
    Tuning("ia3"),
    Tuning("prefix", tokens=3),
    Tuning("prefix", tokens=3, projection=False),
    Tuning("prompt", tokens=3),
    Tuning("p_tuning", tokens=3),
    Tuning("p_tuning", tokens=3, encoder="LSTM"),
]
ALL_TUNINGS = [*PEFT_TUNINGS, Tuning("adapter", reduction=8), Tuning("adapter", reduction=8, placement="houlsby")]
SETTINGS = {"atol": 1e-5, "rtol": 0.0}
EXACTLY = {"atol": 1e-12, "rtol": 1e-10}  # of float64


def label(tuning: Tuning) -> str:
    changed = {name: value for name, value in tuning.asked().items() if value != getattr(Tuning(), name)}
    return "-".join(f"{value}" for value in changed.values()) or "lora"


def disturb(model: Any, seed: int = 1) -> None:
    """Move what learns away from its first values, as a training would."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))


@pytest.fixture
def base(build: Any, tmp_path: Path) -> Path:
    """A text model in a folder."""
    build(images=False).save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def load_base(folder: Path) -> Any:
    return KosmosForConditionalGeneration.from_pretrained(folder).eval()


def tuned(folder: Path, tuning: Tuning, out: Path, seed: int = 1) -> Any:
    """A tuned model in evaluation mode, saved to ``out``."""
    torch.manual_seed(seed)
    model = load_base(folder)
    attach(model, tuning, folder)
    disturb(model, seed)
    save_adapter(model, out)
    return model.eval()


@pytest.mark.parametrize("tuning", PEFT_TUNINGS, ids=label)
def test_peft_reads_what_we_write(base: Path, ids: Tensor, tmp_path: Path, tuning: Tuning) -> None:
    """The same logits from PEFT's own model class, and from ours after reloading."""
    peft = pytest.importorskip("peft")
    expected = tuned(base, tuning, tmp_path / "adapter")(input_ids=ids).logits
    theirs = peft.PeftModel.from_pretrained(load_base(base), tmp_path / "adapter").eval()
    torch.testing.assert_close(theirs(input_ids=ids).logits[:, -ids.shape[1] :], expected, **SETTINGS)
    model = load_base(base)
    plain = model(input_ids=ids).logits
    name = load_adapter(model, tmp_path / "adapter")
    assert name == "adapter"
    assert not any(parameter.requires_grad for parameter in model.parameters())
    torch.testing.assert_close(model(input_ids=ids).logits, expected, **SETTINGS)
    assert (expected - plain).abs().max() > 1e-2


@pytest.mark.parametrize("kind", ["lora", "ia3", "prefix", "prompt"])
def test_we_read_what_peft_writes(base: Path, ids: Tensor, tmp_path: Path, kind: str) -> None:
    """Adapters of PEFT and TRL, without our own file."""
    peft = pytest.importorskip("peft")
    configs = {
        "lora": lambda: peft.LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["layer_norm"]),
        "ia3": lambda: peft.IA3Config(target_modules=["k_proj", "fc2"], feedforward_modules=["fc2"]),
        "prefix": lambda: peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
        "prompt": lambda: peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
    }
    theirs = peft.get_peft_model(load_base(base), configs[kind]())
    disturb(theirs)
    theirs.save_pretrained(tmp_path / "adapter")
    expected = theirs.eval()(input_ids=ids).logits[:, -ids.shape[1] :]
    model = load_base(base)
    load_adapter(model, tmp_path / "adapter")
    torch.testing.assert_close(model(input_ids=ids).logits, expected, **SETTINGS)


def alone_with_prefix(model: Any, ids: Tensor, keys: list[Tensor], values: list[Tensor]) -> Tensor:
    """Logits of one document behind keys and values that a cache holds."""
    cache = DynamicCache(config=model.config.get_text_config())
    for layer, (key, value) in enumerate(zip(keys, values, strict=True)):
        cache.update(key, value, layer)
    return model(input_ids=ids[None], past_key_values=cache, use_cache=True).logits[0]


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize("position", ["xpos", "rope", "sinusoidal", "learned_2d"])
def test_prefix_is_keys_and_values_put_in_front(build: Any, position: str, kernel: str) -> None:
    """By hand, in a cache: alone, and each document of packed rows with padding between and behind."""
    model = build(position=position, images=False)
    model.set_attn_implementation(kernel)
    plain = copy.deepcopy(model)
    attach(model, Tuning("prefix", tokens=3, projection=False))
    prefix = model.model.decoder.prompts.virtual().detach().view(3, 3, 2, 4, 16)  # tokens, layers, key or value, heads
    keys, values = (list(prefix[:, :, half].permute(1, 2, 0, 3)[:, None]) for half in (0, 1))
    lengths = [(9, 4, 7), (5, 15, 0)]
    documents = torch.full((2, 24), -1)
    positions, tokens = torch.zeros(2, 24, dtype=torch.long), torch.randint(4, 90, (2, 24))
    for row, sizes in enumerate(lengths):
        start = row  # the second row begins with padding
        for owner, size in enumerate(sizes):
            documents[row, start : start + size], positions[row, start : start + size] = owner, torch.arange(size)
            start += size
    packed = model(input_ids=tokens, document_ids=documents, position_ids=positions).logits
    for row in range(2):
        for owner in documents[row].unique().tolist():
            own = documents[row] == owner
            if owner >= 0:
                expected = alone_with_prefix(plain, tokens[row, own], keys, values)
                torch.testing.assert_close(packed[row, own], expected, **SETTINGS)
                torch.testing.assert_close(model(input_ids=tokens[row, own][None]).logits[0], expected, **SETTINGS)


@pytest.mark.parametrize("tuning", [Tuning("prefix", tokens=3), Tuning("prompt", tokens=3)], ids=label)
@pytest.mark.parametrize("position", ["rope", "learned_2d"])
def test_bidirectional_blocks_do_not_reach_the_slots(build: Any, tuning: Tuning, position: str) -> None:
    """A packed row with blocks computes what its documents compute alone, second positions included."""
    model = build(position=position, images=False)
    attach(model, tuning)
    tokens = torch.randint(4, 90, (1, 14))
    documents = torch.tensor([[0] * 8 + [1] * 6])
    positions = torch.cat([torch.arange(8), torch.arange(6)])[None]
    blocks = torch.tensor([[0, 0, 0, -1, -1, -1, -1, -1, -1, -1, 5, 5, -1, -1]])
    given = {"block_ids": blocks}
    if position == "learned_2d":
        given["position_in_span"] = torch.tensor([[0] * 5 + [1, 2, 3] + [0] * 6])
    packed = model(input_ids=tokens, document_ids=documents, position_ids=positions, **given).logits
    for own in (slice(0, 8), slice(8, 14)):
        alone = model(
            input_ids=tokens[:, own], position_ids=positions[:, own], **{k: v[:, own] for k, v in given.items()}
        )
        torch.testing.assert_close(packed[:, own], alone.logits, **SETTINGS)


@pytest.mark.parametrize("tuning", ALL_TUNINGS, ids=label)
def test_generate_equals_reading_again(build: Any, ids: Tensor, tuning: Tuning) -> None:
    """Greedy answers through the cache, of left-padded rows too, equal the argmax of whole forward passes."""
    model = build(images=False)
    attach(model, tuning)
    disturb(model)
    model.eval().generation_config.eos_token_id = None
    written = model.generate(input_ids=ids, max_new_tokens=6, do_sample=False)
    rows = ids
    for _ in range(6):
        rows = torch.cat([rows, model(input_ids=rows).logits[:, -1].argmax(-1, keepdim=True)], dim=1)
    assert torch.equal(written, rows)
    padded = torch.cat([torch.full((2, 3), 1), ids], dim=1)
    mask = torch.cat([torch.zeros(2, 3), torch.ones_like(ids)], dim=1).long()
    again = model.generate(input_ids=padded, attention_mask=mask, max_new_tokens=6, do_sample=False)
    assert torch.equal(again[:, 3:], rows)
    beams = model.generate(input_ids=ids, max_new_tokens=4, do_sample=False, num_beams=2)
    assert beams.shape == (2, ids.shape[1] + 4)


@pytest.mark.parametrize("tuning", [one for one in PEFT_TUNINGS if one.method in ("lora", "ia3")], ids=label)
def test_merge_changes_no_logit(base: Path, ids: Tensor, tmp_path: Path, tuning: Tuning) -> None:
    tuning = copy.deepcopy(tuning)
    tuning.also = ["*layers.0.self_attn_layer_norm.*"]
    expected = tuned(base, tuning, tmp_path / "adapter")(input_ids=ids).logits
    model = load_base(base)
    merged = merge(model, load_adapter(model, tmp_path / "adapter"))
    torch.testing.assert_close(merged(input_ids=ids).logits, expected, **SETTINGS)
    merged.save_pretrained(tmp_path / "merged")
    again = load_base(tmp_path / "merged")
    torch.testing.assert_close(again(input_ids=ids).logits, expected, **SETTINGS)
    assert again.state_dict().keys() == load_base(base).state_dict().keys()


def test_several_adapters_in_one_process(base: Path, ids: Tensor, tmp_path: Path) -> None:
    """Each answers as it does alone, in any order, and the model as it did before."""
    kinds = [*ALL_TUNINGS, Tuning("lora", rank=2, targets=["fc1"], also=["*layer_norm.bias"])]
    kinds = [kind for kind in kinds if kind.method != "ia3"]  # not beside LoRA in one model
    expected = [
        tuned(base, kind, tmp_path / f"run{n}" / "checkpoints" / "step-1", n)(input_ids=ids).logits
        for n, kind in enumerate(kinds)
    ]
    model = load_base(base)
    plain = model(input_ids=ids).logits
    names = load_tuned(model, [tmp_path / f"run{n}" / "checkpoints" / "step-1" for n in range(len(kinds))])
    assert names == [f"run{n}" for n in range(len(kinds))]
    torch.testing.assert_close(model(input_ids=ids).logits, expected[0], atol=1e-6, rtol=0)
    for name, logits in reversed(list(zip(names, expected, strict=True))):
        use(model, name)
        torch.testing.assert_close(model(input_ids=ids).logits, logits, **SETTINGS)
        use(model, None)
        assert torch.equal(model(input_ids=ids).logits, plain)
    with pytest.raises(ValueError, match="no adapter 'run99'; there are: run0, run1"):
        use(model, "run99")


@pytest.mark.parametrize("placement", ["pfeiffer", "houlsby"])
def test_new_adapters_change_nothing(build: Any, ids: Tensor, placement: Any) -> None:
    model = build(images=False)
    expected = model(input_ids=ids).logits
    attach(model, Tuning("adapter", reduction=8, placement=placement))
    assert torch.equal(model(input_ids=ids).logits, expected)
    learning = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert len(learning) == 3 * 4 * (2 if placement == "houlsby" else 1)


def adapter_formula(weights: dict[str, Tensor], place: str, h: Tensor) -> Tensor:
    """u = W_up relu(W_down h + b) + b, without the skip connection."""
    inner = torch.relu(h @ weights[f"{place}.down.weight"].T + weights[f"{place}.down.bias"])
    return inner @ weights[f"{place}.up.weight"].T + weights[f"{place}.up.bias"]


def fusion_formula(weights: dict[str, Tensor], place: str, h: Tensor, us: list[Tensor]) -> Tensor:
    """o = Σ softmax_n(h Q · u_n K) u_n V of equation 4, V = I + ΔV."""
    w = {key.removeprefix(f"{place}."): value for key, value in weights.items() if key.startswith(f"{place}.")}
    query = h @ w["query.weight"].T + w["query.bias"]
    scores = torch.stack([(query * (u @ w["key.weight"].T + w["key.bias"])).sum(-1) for u in us], dim=-1).softmax(-1)
    value = torch.eye(h.shape[-1], dtype=h.dtype) + w["value_change.weight"].T
    return sum(scores[..., n, None] * (u @ value) for n, u in enumerate(us))


def reference(model: Any, ids: Tensor, placement: str, change: Any) -> Tensor:
    """The decoder written out over its own parts, with ``change(layer, place, h)`` where adapters stand."""
    decoder = model.model.decoder
    from kosmos.attention import plan_attention

    x = decoder.embed_tokens(ids) * decoder.embed_scale
    positions = torch.arange(ids.shape[1])[None]
    rotation = decoder.positions.rotation(positions)
    plan = plan_attention(decoder.config, x, None, None, None, None, False)
    for number, block in enumerate(decoder.layers):
        a, _ = block.self_attn.forward(block.self_attn_layer_norm(x), rotation, plan, None)
        x = x + (change(number, "attention", a) if placement == "houlsby" else a)
        f = block.ffn.forward(block.final_layer_norm(x))
        x = x + (change(number, "ffn", f) if placement == "houlsby" else f)
        x = change(number, "block", x) if placement == "pfeiffer" else x
    return decoder.layer_norm(x) @ model.lm_head.weight.T


def places(model: Any) -> dict[tuple[int, str], dict[str, Tensor]]:
    return {
        (number, place): dict(module.named_parameters())
        for number, block in enumerate(model.model.decoder.layers)
        for place, module in block.adapter_places.items()
    }


@pytest.mark.parametrize("placement", ["pfeiffer", "houlsby"])
@torch.no_grad()
def test_adapters_and_fusion_equal_the_formulas(base: Path, ids: Tensor, tmp_path: Path, placement: Any) -> None:
    """In float64, so that rounding, which differs between versions of torch, hides nothing."""
    one = Tuning("adapter", reduction=8, placement=placement)
    model = tuned(base, one, tmp_path / "a").double()
    weights = places(model)

    def adapted(number: int, place: str, h: Tensor) -> Tensor:
        return h + adapter_formula(weights[number, place], "adapters.default", h)

    torch.testing.assert_close(model(input_ids=ids).logits, reference(model, ids, placement, adapted), **EXACTLY)
    tuned(base, one, tmp_path / "b", seed=2)
    fusion = Tuning("fusion", adapters=[str(tmp_path / "a"), str(tmp_path / "b")])
    model = tuned(base, fusion, tmp_path / "f", seed=3)
    expected = model(input_ids=ids).logits
    weights = places(model.double())

    def fused(number: int, place: str, h: Tensor) -> Tensor:
        own = weights[number, place]
        us = [adapter_formula(own, f"adapters.default_{n}", h) for n in (0, 1)]
        return h + fusion_formula(own, "fusions.default", h, us)

    torch.testing.assert_close(model(input_ids=ids).logits, reference(model, ids, placement, fused), **EXACTLY)
    again = load_base(base)
    load_adapter(again, tmp_path / "f")
    torch.testing.assert_close(again(input_ids=ids).logits, expected, atol=1e-6, rtol=0)


def test_fusion_trains_itself_alone_and_begins_as_its_adapter(base: Path, ids: Tensor, tmp_path: Path) -> None:
    """Two equal adapters give that adapter; nothing but Q, K and V learns."""
    expected = tuned(base, Tuning("adapter", reduction=8), tmp_path / "a")(input_ids=ids).logits
    model = load_base(base)
    attach(model, Tuning("fusion", adapters=[str(tmp_path / "a")] * 2), base)
    torch.testing.assert_close(model(input_ids=ids).logits, expected, atol=1e-4, rtol=0)  # noise of 1e-6 in each V
    learning = {name.rpartition("fusions.default.")[2] for name, p in model.named_parameters() if p.requires_grad}
    assert learning == {"query.weight", "query.bias", "key.weight", "key.bias", "value_change.weight"}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "value_change" in name:
                parameter.zero_()
    torch.testing.assert_close(model(input_ids=ids).logits, expected, atol=1e-6, rtol=1e-6)


def test_targets_in_the_vision_tower_learn(build: Any) -> None:
    """Encoders record gradients once something in them learns, and PyTorch's attention is no target."""
    model = build()
    pixels = torch.randn(1, 3, 32, 32)
    ids = torch.tensor([[5, 90, *[100] * 8, 91, 6, 7, 8]])
    labels = ids.masked_fill(ids == 100, -100)
    attach(model, Tuning("lora", rank=2, targets=["*vision_tower*"]))
    learning = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert learning
    assert not any("attn" in name or "decoder" in name for name in learning)
    model(input_ids=ids, pixel_values=pixels, labels=labels).loss.backward()
    assert all(parameter.grad.any() for name, parameter in learning.items() if "lora_B" in name)
    plain = build()
    plain.model.vision_tower.learns = True
    attach(plain, Tuning("lora", rank=2))
    assert not plain.model.vision_tower.learns


BAD = [
    (Tuning("lora", targets=["query"]), r"tuning.targets: 'query' matches no linear layer; there are .*fc1.*q_proj"),
    (Tuning("lora", targets=["lm_head"]), "matches no linear layer"),
    (
        Tuning("lora", rank=65),
        r"tuning.rank=65 is larger than model.decoder.layers.0.self_attn.\w+, whose rank is .* 64",
    ),
    (Tuning("lora", rank=0), "tuning.rank=0 must be at least 1"),
    (Tuning("lora", tokens=3), "tuning.tokens=3 means nothing to method 'lora', which reads targets, rank"),
    (Tuning("adapter", reduction=100), "tuning.reduction=100 leaves nothing of the decoder's width 64"),
    (Tuning("adapter", activation="rellu"), "tuning.activation='rellu'"),
    (Tuning("fusion"), "a fusion needs two or more"),
    (Tuning("lora", also=["connector"]), "tuning.also: 'connector' matches no parameter; names look like"),
]


@pytest.mark.parametrize(("tuning", "message"), BAD, ids=lambda value: value if isinstance(value, str) else "")
def test_bad_settings(build: Any, tuning: Tuning, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        attach(build(images=False), tuning)


def test_another_base_is_refused(base: Path, build: Any, tmp_path: Path) -> None:
    """Both fingerprints are told; a copy of the base under another name is the base."""
    tuned(base, Tuning("lora", rank=2), tmp_path / "adapter")
    build(seed=5, images=False).save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match=r"another model: its base .* has fingerprint \w{16}, .*other has \w{16}"):
        load_adapter(load_base(tmp_path / "other"), tmp_path / "adapter")
    load_base(base).save_pretrained(tmp_path / "copy", max_shard_size="100KB")
    load_adapter(load_base(tmp_path / "copy"), tmp_path / "adapter")
