"""Objectives against published examples and tables."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from kosmos.processing_kosmos import KosmosProcessor
from kosmos_data import Document, Text, objectives
from kosmos_data.example import Flat
from kosmos_data.objectives import cm3, fim, glm, semi_causal, span_corruption, ul2
from kosmos_data.objectives._flatten import flatten


def flat(ids: list[int], eos: bool = False) -> Flat:
    """A window of text; the first token is <s> (0), with ``eos`` the last is </s> (2)."""
    array = np.array(ids + [2] * eos, dtype=np.int32)
    weight = np.ones(len(array), dtype=np.float32)
    weight[0] = 0
    return Flat(array, weight, [], np.ones(len(array), dtype=bool))


def prose(words: list[str], count: int, seed: int = 0) -> Document:
    return Document("k", [Text(" ".join(np.random.default_rng(seed).choice(words, count)))])


def test_glm_golden() -> None:
    """The example that THUDM/GLM's blocklm_utils.py makes of eleven tokens and two spans."""
    mask, sop, eop = 90, 91, 92
    example = glm.infill(flat([6, *range(101, 111)]), [(3, 5), (8, 9)], [0, 1], mask, sop, eop, eos=2)
    assert example.token.tolist() == [6, 101, 102, 90, 105, 106, 107, 90, 109, 110, 91, 103, 104, 91, 108]
    assert example.label[10:].tolist() == [103, 104, 92, 108, 92]
    assert example.weight.tolist() == [0] * 10 + [1] * 5
    assert example.position.tolist() == [*range(10), 3, 3, 3, 7, 7]
    assert example.position_in_span.tolist() == [0] * 10 + [1, 2, 3, 1, 2]
    assert example.block.tolist() == [0] * 10 + [-1] * 5
    swapped = glm.infill(flat([6, *range(101, 111)]), [(3, 5), (8, 9)], [1, 0], mask, sop, eop, eos=2)
    assert swapped.token[10:].tolist() == [91, 108, 91, 103, 104]
    assert swapped.position[10:].tolist() == [7, 7, 3, 3, 3]


def test_glm_suffix_has_no_end_of_piece() -> None:
    """The released suffix branch: labels end with the last text token; ours adds the document's own </s>."""
    example = glm.infill(flat([0, 10, 11, 12], eos=True), [(2, 4)], [0], 90, 91, 92, eos=2, open_end=True)
    assert example.token.tolist() == [0, 10, 90, 91, 11, 12]
    assert example.label[3:].tolist() == [11, 12, 2]
    example = glm.infill(flat([0, 10, 11, 12]), [(2, 4)], [0], 90, 91, 92, eos=2, open_end=True)
    assert example.weight[3:].tolist() == [1, 1, 0]


def test_glm_spans_are_those_of_the_release() -> None:
    """Measured on the released sampler at 512 tokens: 15.1 % hidden in 24.6 spans, none longer than about 11."""
    free = np.ones(512, dtype=bool)
    drawn = [glm.token_spans(free, 0.15, np.random.default_rng(seed)) for seed in range(300)]
    lengths = [stop - start for spans in drawn for start, stop in spans]
    assert sum(lengths) / (300 * 512) == pytest.approx(0.151, abs=0.002)
    assert len(lengths) / 300 == pytest.approx(24.6, abs=0.4)
    assert np.mean(lengths) == pytest.approx(3.157, abs=0.05)
    gaps = [b[0] - a[1] for spans in drawn for a, b in itertools.pairwise(spans)]
    assert min(gaps) == 1


def test_glm_shuffles_its_pieces_where_positions_tell_them_apart(
    objective_processor: KosmosProcessor, objective_words: list[str]
) -> None:
    sop = objective_processor.tokenizer.convert_tokens_to_ids("<sop>")
    for two_positions in (True, False):
        make = objectives.get("glm", objective_processor, two_positions=two_positions)
        sorted_ones = 0
        for seed in range(20):
            document = Document("k", [Text(" ".join(objective_words))])
            example = make(document, seed)
            firsts = np.flatnonzero(example.token == sop) + 1  # every word occurs once: what stood first in the text?
            order = [objective_processor.encode_text(document.text).index(example.token[at]) for at in firsts]
            sorted_ones += order == sorted(order)
        assert sorted_ones == 20 if not two_positions else sorted_ones < 10


def raw_length(inputs: int, density: float, mean: float) -> tuple[int, int]:
    """T5's ``random_spans_helper``: the longest text whose corrupted form fits, and the length of its targets."""

    def lengths(length: int) -> tuple[int, int]:
        noise, spans = span_corruption.noise_counts(length, density, mean)
        return length - noise + spans + 1, noise + spans + 1

    length = inputs
    while lengths(length + 1)[0] <= inputs:
        length += 1
    return length, lengths(length)[1]


@pytest.mark.parametrize(
    ("density", "mean", "raw", "targets"),
    [
        (0.15, 3, 568, 114),
        (0.15, 8, 588, 100),
        (0.5, 3, 767, 513),
        (0.5, 8, 908, 512),
        (0.15, 64, 600, 92),
        (0.5, 64, 1007, 513),
    ],
)
def test_t5_and_ul2_lengths(density: float, mean: float, raw: int, targets: int) -> None:
    """What T5's helper finds for 512 inputs."""
    assert raw_length(512, density, mean) == (raw, targets)


def test_span_corruption_golden() -> None:
    mask = np.array([0, 0, 1, 1, 0, 0, 1, 0], dtype=bool)
    example = span_corruption.corrupt(flat([0, 11, 12, 13, 14, 15, 16], eos=True), mask, [80, 81], 0, 2)
    assert example.token.tolist() == [0, 11, 80, 14, 15, 81, 80, 12, 13, 81, 16]
    assert example.block.tolist() == [0] * 6 + [-1] * 5
    assert example.label[5:].tolist() == [80, 12, 13, 81, 16, 2]
    assert example.weight.tolist() == [0] * 5 + [1] * 6
    with_mode = span_corruption.corrupt(flat([0, 11, 12, 13], eos=True), mask[:5], [80], 0, 2, mode=70)
    assert with_mode.token.tolist() == [0, 70, 11, 80, 80, 12, 13]


def test_noise_begins_unmasked_and_ends_masked() -> None:
    for seed in range(50):
        mask = span_corruption.noise_mask(512, 0.15, 3.0, np.random.default_rng(seed))
        assert not mask[0]
        assert mask[-1]
        assert mask.sum() == 77
        assert np.diff(mask.astype(int)).clip(min=0).sum() == 26


def test_ul2_draws_its_table(objective_processor: KosmosProcessor, objective_words: list[str]) -> None:
    """Seven denoisers evenly: two R, four X, one S; UL2R half S."""
    document = prose(objective_words, 60)
    modes = objective_processor.tokenizer.convert_tokens_to_ids(["[NLU]", "[NLG]", "[S2S]"])
    for variant, expected in (("ul2", [2 / 7, 4 / 7, 1 / 7]), ("ul2r", [0.25, 0.25, 0.5])):
        make = objectives.get("ul2", objective_processor, variant=variant)
        drawn = [modes.index(make(document, seed).token[1]) for seed in range(600)]
        assert np.bincount(drawn) / 600 == pytest.approx(np.array(expected), abs=0.06)
    assert len(ul2.VARIANTS["ul2"]) == 7


def test_cm3_golden() -> None:
    example = cm3.move(flat([0, 11, 12, 13, 14, 15], eos=True), [(2, 4)], [80, 81], 89, 2, sentinel_loss=True)
    assert example.token.tolist() == [0, 11, 80, 14, 15, 80, 12, 13, 89]
    assert example.label.tolist() == [11, 80, 14, 15, 80, 12, 13, 89, 2]
    assert (example.weight == 1).all()
    without = cm3.move(flat([0, 11, 12, 13, 14, 15], eos=True), [(2, 4)], [80, 81], 89, 2, sentinel_loss=False)
    assert without.weight.tolist() == [1, 0, 1, 1, 0, 1, 1, 1, 1]
    plain = cm3.move(flat([0, 11, 12], eos=True), [], [80], 89, 2, sentinel_loss=True)
    assert plain.token.tolist() == [0, 11, 12]


def test_cm3_leaves_a_third_plain(objective_processor: KosmosProcessor, objective_words: list[str]) -> None:
    """Poisson(1) is 0 in 37 % of the cases."""
    make, document = objectives.get("cm3", objective_processor), prose(objective_words, 60)
    plain = sum(len(make(document, seed)) == 61 for seed in range(400))
    assert plain / 400 == pytest.approx(0.37, abs=0.07)


@pytest.mark.parametrize("spm", [False, True])
def test_fim_golden(spm: bool, objective_processor: KosmosProcessor, objective_words: list[str]) -> None:
    """The layouts of BigCode's Megatron; a cut within a word leaves no space there."""
    one, two, three = objective_words[:3]
    text = f"{one} {two} {three}"
    cut = len(one) + 1 + 2
    parts = fim.divide([Text(text)], cut, len(one) + 1 + len(two))
    pre, suf, mid = tokens = objective_processor.tokenizer.convert_tokens_to_ids(list(fim.TOKENS))
    example = fim.rearrange("k", parts, objective_processor, tokens, spm, "all")
    prefix = objective_processor.encode_text(text[:cut])
    middle = objective_processor.continue_text(two[2:])
    suffix = objective_processor.encode_text(three)
    order = {True: [suf, *suffix, mid, *prefix, *middle], False: [*prefix, suf, *suffix, mid, *middle]}
    expected = [0, pre, *order[spm]]
    assert example.token.tolist() == expected
    assert example.label.tolist() == [*expected[1:], 2]
    assert (example.weight == 1).all()
    assert objective_processor.tokenizer.decode(prefix + middle + suffix) == text


def equation_1(length: int, spans: list[tuple[int, int]]) -> np.ndarray:
    """Which tokens are targets, summed term by term as MetaLM's eq. (1) writes it (1-based text x_1 … x_n)."""
    trained = np.zeros(length + 1, dtype=bool)
    ends, starts = [1, *(stop for _, stop in spans)], [*(start for start, _ in spans), length]
    for end, start in zip(ends, starts, strict=True):
        for t in range(end, start + 1):
            trained[t] = True
    return trained[1:]


@pytest.mark.parametrize("sampler", ["paper", "grid"])
def test_metalm_mask_identity(sampler: str, objective_processor: KosmosProcessor) -> None:
    """On 100 documents of all lengths the loss is exactly on eq. (1)."""
    for seed in range(100):
        rng = np.random.default_rng(seed)
        length = int(rng.integers(300, 1500))
        window = flat([0, *rng.integers(10, 50, length).tolist()], eos=True)
        free = window.weight > 0
        free[-1] = False
        draw = semi_causal.paper_spans(free, 0.25, 64, 128, rng) if sampler == "paper" else None
        spans = draw or semi_causal.grid_spans(free, 0.25, 128, rng)
        example = semi_causal.replace_spans(window, spans, objective_processor)
        assert (example.weight > 0).tolist() == equation_1(length + 1, spans).tolist()
        targets = window.ids[1:]
        assert (example.label[example.weight > 0] == targets[example.weight > 0]).all()
        in_code = np.ones(len(window.ids) - 1, dtype=bool)
        for start, stop in spans:
            in_code[start : stop - 1] = False  # spec: w[t] = 0 for s ≤ t ≤ e − 2, by input position
        assert (example.weight > 0).tolist() == in_code.tolist()


def test_the_released_sampler_covers_what_it_did() -> None:
    """Measured on the release at 2,048 tokens: 27.4 % (25.0 – 31.2), 5.85 spans, lengths 65 – 128."""
    free = np.ones(2048, dtype=bool)
    free[0] = False
    drawn = [semi_causal.grid_spans(free, 0.25, 128, np.random.default_rng(seed)) for seed in range(200)]
    cover = np.array([sum(stop - start for start, stop in spans) for spans in drawn]) / 2048
    lengths = np.array([stop - start for spans in drawn for start, stop in spans])
    assert cover.mean() == pytest.approx(0.274, abs=0.008)
    assert cover.min() >= 0.249
    assert cover.max() < 0.32
    assert len(lengths) / 200 == pytest.approx(5.85, abs=0.15)
    assert (lengths.min(), lengths.max()) == (65, 128)
    assert all(a[1] <= b[0] for spans in drawn for a, b in itertools.pairwise(spans))


@pytest.mark.parametrize("size", [2, 3, 7, 40, 100, 190, 255, 256, 370, 700, 2048])
@pytest.mark.parametrize("share", [0.25, 0.5])
def test_papers_spans_cover_the_share_of_texts_of_any_length(size: int, share: float) -> None:
    """The mean is the share for each length; spans are 64 to 128 tokens where the text holds two of the longest."""
    free = np.ones(size + 2, dtype=bool)
    free[[0, -1]] = False
    drawn = [semi_causal.paper_spans(free, share, 64, 128, np.random.default_rng(seed)) for seed in range(3000)]
    covered = np.array([sum(stop - start for start, stop in spans) for spans in drawn]) / size
    assert covered.mean() == pytest.approx(share, abs=4 * covered.std() / 3000**0.5 + 1e-9)
    number, starts, stops = np.array([(n, *span) for n, spans in enumerate(drawn) for span in spans]).T
    lengths = stops - starts
    assert lengths.max() == min(128, size // 2)
    assert lengths.min() == (64 if size >= 256 else max(1, size // 2 * 64 // 128))
    assert lengths.mean() == pytest.approx((lengths.min() + lengths.max()) / 2, abs=0.9)
    assert starts.min() >= 1, "all that is free"
    assert stops.max() <= size + 1
    assert (stops[:-1] <= starts[1:])[number[:-1] == number[1:]].all(), "in order, none over another"


def test_papers_spans_stay_within_a_stretch_of_text() -> None:
    """Of a text that images divide, each stretch has its share; one of a single token has none."""
    free = np.ones(500, dtype=bool)
    free[[0, 40, 42, 300, 301, 302]] = False
    covered = np.zeros(500)
    for seed in range(4000):
        for start, stop in semi_causal.paper_spans(free, 0.25, 64, 128, np.random.default_rng(seed)):
            assert free[start:stop].all()
            covered[start:stop] += 1 / 4000
    assert covered[41] == 0
    for start, stop in ((1, 40), (43, 300), (303, 500)):
        assert covered[start:stop].mean() == pytest.approx(0.25, abs=0.01)


def test_a_large_share_leaves_out_what_does_not_fit() -> None:
    free = np.ones(60, dtype=bool)
    for seed in range(200):
        spans = semi_causal.paper_spans(free, 0.95, 64, 128, np.random.default_rng(seed))
        assert sum(stop - start for start, stop in spans) <= 60


def test_an_s_denoiser_asks_for_the_papers_quarter(
    objective_processor: KosmosProcessor, objective_words: list[str]
) -> None:
    """The end of a text, always the same part of it; drawn evenly it is half on average."""
    s2s = objective_processor.tokenizer.convert_tokens_to_ids("[S2S]")
    shares: dict[float | None, list[float]] = {0.25: [], None: []}
    for targets, found in shares.items():
        make = objectives.get("ul2", objective_processor, variant="ul2r", s_targets=targets)
        for seed in range(200):
            example = make(prose(objective_words, 79, seed), seed)
            if example.token[1] == s2s:
                asked = np.flatnonzero(example.weight > 0)
                assert asked.tolist() == list(range(asked[0], len(example))), "its end"
                found.append(len(asked) / 80)  # with </s>
    assert set(shares[0.25]) == {0.25}
    assert np.mean(shares[None]) == pytest.approx(0.5, abs=0.1)
    with pytest.raises(ValueError, match="s_targets=1 must lie between 0 and 1"):
        objectives.get("ul2", objective_processor, s_targets=1)


def test_grid_keeps_away_from_borders() -> None:
    """One border in a cell: the span is what follows it, if that is 19 tokens or more; two: no span."""
    free = np.ones(700, dtype=bool)
    free[[0, 64, 230, 300, 310]] = False
    for seed in range(30):
        for start, stop in semi_causal.grid_spans(free, 0.99, 128, np.random.default_rng(seed)):
            assert free[start:stop].all()
            assert start not in range(257, 385)
            assert start != 65 or stop == 129
            assert start != 231 or stop == 257


def test_metalm_input_is_its_fine_tuning_format(
    objective_processor: KosmosProcessor, objective_words: list[str]
) -> None:
    """Demonstrations: inputs through the encoder, labels written, </s> between and at the end; loss on labels."""
    a, b, c, d = objective_words[:4]
    document = Document("k", [Text(a, False), Text(b), Text(c, False), Text(d)])
    example = objectives.get("semi_causal", objective_processor, sampler="input")(document, 0)
    slot, (label_b, label_d) = objective_processor.span_slot_id, objective_processor.encode_text(f"{b} {d}")
    assert example.token.tolist() == [0, slot, label_b, 2, slot, label_d]
    assert example.label[example.weight > 0].tolist() == [label_b, 2, label_d, 2]
    assert [span.payload.tolist() for span in example.placed] == [
        [0, *objective_processor.encode_text(text)] for text in (a, c)
    ]


def test_semi_causal_with_places_of_fixed_number(
    objective_processor: KosmosProcessor, objective_words: list[str]
) -> None:
    """A span connector with queries: the same spans and targets, but four slots each; the encoder reads all tokens."""
    parts = objective_processor.image_processor, objective_processor.tokenizer
    few = KosmosProcessor(*parts, num_span_tokens=4)
    options = {"min_length": 8, "max_length": 16}
    document = prose(objective_words, 120, 0)
    long, short = (
        objectives.get("semi_causal", processor, **options)(document, 3) for processor in (objective_processor, few)
    )
    assert [span.payload.tolist() for span in short.placed] == [span.payload.tolist() for span in long.placed]
    assert {span.length for span in short.placed} == {4}
    for span in short.placed:
        assert (short.token[span.start : span.start + 4] == few.span_slot_id).all()
        assert short.weight[span.start - 1 : span.start + 4].tolist() == [1.0, 0.0, 0.0, 0.0, 1.0]
        assert short.label[span.start - 1] == span.payload[1]
    assert short.label[short.weight > 0].tolist() == long.label[long.weight > 0].tolist()


def test_prefix_of_metalm_trains_what_follows(objective_processor: KosmosProcessor, objective_words: list[str]) -> None:
    make = objectives.get("semi_causal", objective_processor, sampler="prefix", max_length=20)
    for seed in range(20):
        example = make(prose(objective_words, 50, seed), seed)
        (span,) = example.placed
        assert span.start == 1
        assert span.length <= 20
        assert example.weight.tolist() == [0] * span.length + [1] * (len(example) - span.length)


def test_inputs_are_prefixes_or_blanks(objective_processor: KosmosProcessor, objective_words: list[str]) -> None:
    """Fine-tuning on (question, answer) as a prefix language model and as GLM's infilling."""
    question, answer = " ".join(objective_words[:5]), objective_words[7]
    document = Document("k", [Text(question, supervised=False), Text(answer)])
    (label,) = objective_processor.encode_text(answer)
    prefix = objectives.get("prefix_lm", objective_processor, prefix="input", loss="supervised")(document, 0)
    assert prefix.block.tolist() == [0] * 6 + [-1]
    assert prefix.label[prefix.weight > 0].tolist() == [label, 2]
    blank = objectives.get("glm", objective_processor, levels={"answer": 1}, loss="supervised")(document, 0)
    mask, sop, eop = objective_processor.tokenizer.convert_tokens_to_ids(["<mask>", "<sop>", "<eop>"])
    assert blank.token.tolist() == [0, *objective_processor.encode_text(question), mask, 2, sop, label]
    assert blank.label[blank.weight > 0].tolist() == [label, eop]


def test_mlm_is_80_10_10(objective_processor: KosmosProcessor, objective_words: list[str]) -> None:
    make, mask = objectives.get("mlm", objective_processor), objective_processor.tokenizer.mask_token_id
    masked = kept = asked = total = 0
    for seed in range(150):
        document = prose(objective_words, 100, seed)
        example = make(document, seed)
        at = example.weight > 0
        truth = flatten(document, objective_processor).ids
        assert (example.label == np.where(at, truth, -100)).all()
        assert (example.token[~at] == truth[~at]).all()
        assert (example.block == 0).all()
        masked += (example.token[at] == mask).sum()
        kept += (example.token[at] == truth[at]).sum()
        asked, total = asked + at.sum(), total + len(example) - 2
    assert asked / total == pytest.approx(0.15, abs=0.001)
    assert masked / asked == pytest.approx(0.8, abs=0.03)
    assert kept / asked == pytest.approx(0.1, abs=0.03)
