"""Counts of a corpus, and what is written of them."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections import Counter
from itertools import chain
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.data.corpus import Pair, read_pairs
from model.data.statistics import CorpusStatistics, SideStatistics, course_words, course_words_all
from model.errors import DataError

TINY = Path(__file__).parents[2] / "data" / "tiny.en-fr.tsv"
PAIRS = [Pair("a b a", "x"), Pair("b", "x y z w"), Pair("a c", "y")]

token_lists = st.lists(st.lists(st.sampled_from("abcde"), max_size=9), min_size=1, max_size=40)


def png_size(path: Path) -> tuple[int, int]:
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    return int.from_bytes(content[16:20], "big"), int.from_bytes(content[20:24], "big")


def test_a_small_corpus_is_counted_by_hand() -> None:
    src = CorpusStatistics.from_pairs(PAIRS, names=("en", "fr")).src
    assert src.name == "en"
    assert src.length_counts == {1: 1, 2: 1, 3: 1}
    assert list(src.top_tokens.items()) == [("a", 3), ("b", 2), ("c", 1)]
    assert src.frequency_counts == {3: 1, 2: 1, 1: 1}
    assert (src.num_tokens, src.num_types, src.num_once, src.max_length) == (6, 3, 1, 3)
    assert src.mean_length == 2


def test_words_are_those_of_the_course_unless_told_otherwise() -> None:
    pairs = [Pair("Go, go!", "Va\u202f!")]
    assert course_words("Go, go!") == ["go", ",", "go", "!"]
    assert CorpusStatistics.from_pairs(pairs).src.top_tokens == {"go": 2, "!": 1, ",": 1}
    assert CorpusStatistics.from_pairs(pairs, tokenize=list).tgt.num_tokens == 4


@given(token_lists)
def test_the_histograms_hold_every_sentence_and_every_token(sentences: list[list[str]]) -> None:
    side = SideStatistics.from_sentences("en", sentences)
    assert side.num_sentences == len(sentences)
    assert side.num_tokens == sum(map(len, sentences)) == sum(f * n for f, n in side.frequency_counts.items())
    assert side.mean_length == pytest.approx(statistics.mean(map(len, sentences)))
    assert side.max_length == max(map(len, sentences))


@given(token_lists, st.sampled_from([0.0, 0.5, 0.9, 0.95, 0.99, 1.0]))
def test_a_quantile_is_the_least_length_that_covers_its_fraction(sentences: list[list[str]], fraction: float) -> None:
    side = SideStatistics.from_sentences("en", sentences)
    lengths = sorted(map(len, sentences))
    covering = [n for n in lengths if sum(length <= n for length in lengths) / len(lengths) >= fraction - 1e-9]
    assert side.length_quantile(fraction) == covering[0]


def test_a_quantile_of_a_hundred_sentences_is_exact() -> None:
    assert SideStatistics.from_sentences("en", [["a"] * n for n in range(1, 101)]).length_quantile(0.95) == 95


@given(token_lists)
def test_frequencies_fall_with_the_rank_and_keep_their_ends(sentences: list[list[str]]) -> None:
    side = SideStatistics.from_sentences("en", sentences)
    points = side.rank_frequencies()
    frequencies = sorted(Counter(chain.from_iterable(sentences)).values(), reverse=True)
    assert points == [(rank, frequencies[rank - 1]) for rank, _ in points]
    assert [rank for rank, _ in points[:1]] == ([1] if frequencies else [])
    assert [rank for rank, _ in points[-1:]] == ([len(frequencies)] if frequencies else [])


def test_many_ranks_are_thinned_out() -> None:
    side = SideStatistics(
        name="en", length_counts={1: 1}, frequency_counts=dict.fromkeys(range(10**5, 0, -1), 1), top_tokens={}
    )
    points = side.rank_frequencies()
    assert len(points) < 260
    assert [rank for rank, _ in points[:9]] == list(range(1, 10))
    assert points[-1] == (10**5, 1)


def test_json_and_pictures_are_written_into_a_new_folder(tmp_path: Path) -> None:
    corpus = CorpusStatistics.from_pairs(read_pairs(TINY), names=("en", "fr"))
    paths = corpus.write(tmp_path / "new" / "folder")
    assert [path.name for path in paths] == ["statistics.json", "lengths.png", "frequencies.png"]
    assert sorted(paths) == sorted((tmp_path / "new" / "folder").iterdir())
    assert json.loads(paths[0].read_text(encoding="utf-8")) == json.loads(json.dumps(corpus.to_json()))
    assert png_size(paths[1]) == png_size(paths[2]) == (1200, 675)


def test_the_same_corpus_gives_the_same_files(tmp_path: Path) -> None:
    first, second = (CorpusStatistics.from_pairs(PAIRS).write(tmp_path / name) for name in "ab")
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


@pytest.mark.parametrize("pair", [Pair("", ""), Pair("", "a"), Pair("a", "b " * 3000)])
def test_an_odd_corpus_can_be_drawn(tmp_path: Path, pair: Pair) -> None:
    assert all(path.stat().st_size > 0 for path in CorpusStatistics.from_pairs([pair]).write(tmp_path))


@given(st.lists(st.text(st.sampled_from("aÀ ,.!?\u0301\u200b\u2003\n\t"))))
def test_words_of_many_texts_at_once_are_those_of_each(texts: list[str]) -> None:
    assert course_words_all(texts) == [course_words(text) for text in texts] or not texts


def test_the_summary_is_a_table() -> None:
    corpus = CorpusStatistics.from_pairs(PAIRS, names=("en", "fr"))
    assert str(corpus).splitlines() == [
        "3 pairs; length of a sentence in tokens",
        "    tokens  different  once  mean  median  95 %  99 %  longest",
        "en       6          3     1   2.0       2     3     3        3",
        "fr       6          4     2   2.0       1     4     4        4",
    ]


def test_a_corpus_without_a_pair_is_refused() -> None:
    with pytest.raises(DataError, match="no pair"):
        CorpusStatistics.from_pairs([])


def test_counting_alone_does_not_import_matplotlib() -> None:
    code = "import sys, model.data.statistics; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=TINY.parents[2], check=False).returncode == 0
