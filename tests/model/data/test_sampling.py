"""Drawn cuts: in the right proportions, spelling the text, and the same in every process for a seed."""

from __future__ import annotations

import math
import subprocess
import sys
from collections import Counter
from pathlib import Path
from random import Random

import pytest

from model.data.sampling import SPACE, SubwordSampler
from model.data.tokenizer import SentencePieceTokenizer

ROOT = Path(__file__).parents[3]
TEXTS = ["the cat sat on the mat", "a bat and a rat sat there", "cats chat that way at that"] * 5


class Vocabulary:
    """What the sampler asks of a sentencepiece processor."""

    def __init__(self, pieces: dict[str, float]) -> None:
        self._pieces = [("<unk>", 0.0), ("<pad>", 0.0), ("<bos>", 0.0), ("<eos>", 0.0), *pieces.items()]

    def vocab_size(self) -> int:
        return len(self._pieces)

    def id_to_piece(self, piece_id: int) -> str:
        return self._pieces[piece_id][0]

    def get_score(self, piece_id: int) -> float:
        return self._pieces[piece_id][1]

    def is_byte(self, piece_id: int) -> bool:
        return False

    def is_control(self, piece_id: int) -> bool:
        return 0 < piece_id < 4

    def is_unknown(self, piece_id: int) -> bool:
        return piece_id == 0

    def is_unused(self, piece_id: int) -> bool:
        return False


PIECES = {"a": math.log(0.5), "b": math.log(0.2), "ab": math.log(0.1), "ba": math.log(0.05), "aba": math.log(0.01)}


def all_cuts(word: str) -> list[tuple[str, ...]]:
    if not word:
        return [()]
    return [
        (word[:end], *rest) for end in range(1, len(word) + 1) if word[:end] in PIECES for rest in all_cuts(word[end:])
    ]


@pytest.mark.parametrize("alpha", [0.3, 1.0])
def test_unigram_cuts_come_in_proportion_to_their_probability(alpha: float) -> None:
    vocabulary = Vocabulary(PIECES)
    sampler, chance, num_draws = SubwordSampler(vocabulary, alpha), Random(1), 20_000
    counts = Counter(tuple(map(vocabulary.id_to_piece, sampler.draw("abab", chance))) for _ in range(num_draws))
    weights = {cut: math.exp(alpha * sum(PIECES[piece] for piece in cut)) for cut in all_cuts("abab")}
    assert set(counts) <= set(weights)
    for cut, weight in weights.items():
        share = weight / sum(weights.values())
        assert counts[cut] / num_draws == pytest.approx(share, abs=5 * math.sqrt(share / num_draws))


def test_bpe_without_a_merge_left_out_is_the_tokenizers_own_cut() -> None:
    tokenizer = SentencePieceTokenizer.train(TEXTS, vocab_size=40, model_type="bpe")
    sampler = SubwordSampler(tokenizer._processor, 0.0)
    for text in (*TEXTS, "hat hatter ☃☃ cat"):
        assert sampler.draw(tokenizer._processor.normalize(text), Random(1)) == tokenizer.encode(text)


def test_bpe_with_all_merges_left_out_is_characters() -> None:
    tokenizer = SentencePieceTokenizer.train(TEXTS, vocab_size=40, model_type="bpe")
    ids = SubwordSampler(tokenizer._processor, 1.0).draw(f"{SPACE}the{SPACE}cat", Random(1))
    assert tokenizer.tokens(ids) == [SPACE, "t", "h", "e", SPACE, "c", "a", "t"]


@pytest.mark.parametrize("model_type", ["unigram", "bpe"])
def test_unknown_neighbours_are_one_token_as_in_the_tokenizers_own_cut(model_type: str) -> None:
    tokenizer = SentencePieceTokenizer.train(TEXTS, vocab_size=40, model_type=model_type)
    assert tokenizer.encode_sampled("☃☃", 0.5).count(0) == 1 == tokenizer.encode("☃☃").count(0)


@pytest.mark.parametrize("model_type", ["unigram", "bpe"])
def test_a_seed_gives_the_same_draws_in_another_process(model_type: str, tmp_path: Path) -> None:
    path = SentencePieceTokenizer.train(TEXTS, vocab_size=40, model_type=model_type).save(tmp_path / "tokenizer.model")
    program = (
        "from model.data.tokenizer import load_tokenizer, seed_sampling\n"
        "seed_sampling(7)\n"
        f"print(load_tokenizer({str(path)!r}).encode_batch({TEXTS!r}, sampling_alpha=0.3))"
    )
    command = [sys.executable, "-c", program]
    outputs = {subprocess.run(command, cwd=ROOT, check=True, capture_output=True).stdout for _ in range(2)}
    assert len(outputs) == 1
