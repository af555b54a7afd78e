"""Both kinds of tokenizer against the same laws, then each against its own."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st

from model.data.corpus import normalize, read_pairs
from model.data.tokenizer import (
    TOKENIZERS,
    SentencePieceTokenizer,
    Tokenizer,
    WordTokenizer,
    load_tokenizer,
    seed_sampling,
    train_tokenizer,
)
from model.data.vocab import BOS_ID, EOS_ID, PAD_ID, UNK_ID
from model.errors import DataError, InvalidValue

TEXTS = [pair.tgt for pair in read_pairs(Path(__file__).parents[2] / "data" / "tiny.en-fr.tsv")]
TRAINED: dict[str, Tokenizer] = {
    "word": WordTokenizer.train(TEXTS, min_freq=2),
    "unigram": SentencePieceTokenizer.train(TEXTS, vocab_size=120),
    "bpe": SentencePieceTokenizer.train(TEXTS, vocab_size=120, model_type="bpe"),
    "bytes": SentencePieceTokenizer.train(TEXTS, vocab_size=400, byte_fallback=True),
}
SUBWORD = ["unigram", "bpe", "bytes"]

any_text = st.text(st.characters(exclude_categories=[]))
known_text = st.text(st.sampled_from(sorted(set("".join(TEXTS)))))


@pytest.fixture(params=list(TRAINED))
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return TRAINED[request.param]


# laws of every kind


@pytest.mark.parametrize("name", list(TRAINED))
@given(text=any_text)
def test_any_text_gives_ids_within_the_vocabulary_and_no_special(name: str, text: str) -> None:
    tokenizer = TRAINED[name]
    ids = tokenizer.encode(text)
    assert all(0 <= token_id < tokenizer.vocab_size for token_id in ids)
    assert {PAD_ID, BOS_ID, EOS_ID}.isdisjoint(ids)


@pytest.mark.parametrize("name", list(TRAINED))
@given(text=any_text)
def test_there_is_one_piece_for_each_id(name: str, text: str) -> None:
    tokenizer = TRAINED[name]
    ids = tokenizer.encode(text)
    assert len(tokenizer.tokenize(text)) == len(tokenizer.tokens(ids)) == len(ids)


@pytest.mark.parametrize("name", list(TRAINED))
@given(texts=st.lists(any_text))
def test_a_batch_equals_its_texts_one_by_one(name: str, texts: list[str]) -> None:
    tokenizer = TRAINED[name]
    assert tokenizer.encode_batch(texts) == [tokenizer.encode(text) for text in texts]


@pytest.mark.parametrize("name", list(TRAINED))
@given(text=any_text)
def test_spelling_variants_of_a_text_have_the_same_ids(name: str, text: str) -> None:
    tokenizer = TRAINED[name]
    assert tokenizer.encode(text) == tokenizer.encode(normalize(text))


@pytest.mark.parametrize("name", list(TRAINED))
@given(texts=st.lists(known_text, min_size=2, max_size=2))
def test_text_decoded_so_far_begins_the_text_decoded_later(name: str, texts: list[str]) -> None:
    tokenizer = TRAINED[name]
    first, second = map(tokenizer.encode, texts)
    assert tokenizer.decode(first + second).startswith(tokenizer.decode(first))


@pytest.mark.parametrize("text", ["", " ", "\u00a0\n", "\x00\u200b"])
def test_a_blank_text_has_no_ids(tokenizer: Tokenizer, text: str) -> None:
    assert not tokenizer.encode(text)
    assert not tokenizer.tokenize(text)
    assert tokenizer.decode([]) == ""


def test_specials_leave_no_trace_in_decoded_text(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("Le chat dort.")
    assert tokenizer.decode([BOS_ID, *ids, EOS_ID, PAD_ID, PAD_ID]) == tokenizer.decode(ids)


def test_the_name_of_a_special_in_a_text_is_not_one(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("le <eos> chat <pad> dort <bos>")
    assert {PAD_ID, BOS_ID, EOS_ID}.isdisjoint(ids)


@pytest.mark.parametrize("token_id", [-1, 100_000])
def test_an_id_outside_is_refused(tokenizer: Tokenizer, token_id: int) -> None:
    with pytest.raises(InvalidValue, match="token id"):
        tokenizer.decode([token_id])
    with pytest.raises(InvalidValue, match="token id"):
        tokenizer.tokens([token_id])


@pytest.mark.parametrize("alpha", [-0.1, 1.1, float("nan")])
def test_an_alpha_outside_is_refused(tokenizer: Tokenizer, alpha: float) -> None:
    with pytest.raises(InvalidValue, match="sampling_alpha"):
        tokenizer.encode_batch(["Oui."], sampling_alpha=alpha)
    with pytest.raises(InvalidValue, match="sampling_alpha"):
        tokenizer.encode_sampled("Oui.", alpha)


def test_save_then_load_is_identical(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tokenizer.save(tmp_path / tokenizer.file_name)
    again = load_tokenizer(path)
    assert type(again) is type(tokenizer)
    assert again.encode_batch(TEXTS) == tokenizer.encode_batch(TEXTS)
    assert again.save(tmp_path / "again").read_bytes() == path.read_bytes()


def test_saving_leaves_no_temporary_file_and_a_file_that_others_may_read(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tokenizer.save(tmp_path / "tokenizer")
    assert list(tmp_path.iterdir()) == [path]
    assert path.stat().st_mode & 0o444 == 0o444


def test_a_failed_save_keeps_the_old_file(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="folder"):
        tokenizer.save(tmp_path / "folder")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize("kind", list(TOKENIZERS))
def test_training_twice_gives_the_same_file(kind: str, tmp_path: Path) -> None:
    files = [train_tokenizer(kind, TEXTS, vocab_size=100).save(tmp_path / name) for name in "ab"]
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize("kind", list(TOKENIZERS))
@pytest.mark.parametrize("texts", [[], ["", " \n", "\x00"]])
def test_texts_without_a_word_are_refused(kind: str, texts: list[str]) -> None:
    with pytest.raises(DataError, match="no word"):
        train_tokenizer(kind, texts)


def test_every_kind_is_listed_under_its_name() -> None:
    assert {kind: cls.kind for kind, cls in TOKENIZERS.items()} == {kind: kind for kind in TOKENIZERS}


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(InvalidValue, match="word or sentencepiece"):
        train_tokenizer("letters", TEXTS)


# word


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("Hello, World!", "hello , world !"),
        ("Va\u202f!", "va !"),
        ("Wait...", "wait . . ."),
        ("Vraiment?!", "vraiment ? !"),
        (".5", ".5"),
        ("3.14", "3 .14"),
        ("C'est-à-dire", "c'est-à-dire"),
        ("E\u0301te\u0301", "été"),
        ("\u212a", "k"),
    ],
)
def test_words_are_cut_as_in_the_course(text: str, tokens: str) -> None:
    assert TRAINED["word"].tokenize(text) == tokens.split()


@pytest.mark.parametrize("text", ["le chat dort.", "où est le chat?", "oui, non!", ". le"])
def test_decoding_takes_the_space_before_punctuation_away(text: str) -> None:
    tokenizer = WordTokenizer.train(["le chat dort où est oui non . , ? !"], min_freq=1)
    assert tokenizer.decode(tokenizer.encode(text)) == text.replace(" .", ".")


@given(known_text)
def test_words_decoded_and_encoded_again_are_the_same(text: str) -> None:
    tokenizer = TRAINED["word"]
    ids = tokenizer.encode(text)
    assert tokenizer.encode(tokenizer.decode(ids)) == ids


def test_an_unknown_word_shows_its_spelling_in_pieces_and_unk_in_text() -> None:
    tokenizer = TRAINED["word"]
    ids = tokenizer.encode("Le zébu dort.")
    assert ids[1] == UNK_ID
    assert tokenizer.tokenize("Le zébu dort.")[1] == "zébu"
    assert tokenizer.decode(ids) == "le <unk> dort."


def test_words_have_no_sampling() -> None:
    tokenizer = TRAINED["word"]
    assert tokenizer.encode_sampled(TEXTS[9], 0.5) == tokenizer.encode(TEXTS[9])
    assert tokenizer.encode_batch(TEXTS, sampling_alpha=0.5) == tokenizer.encode_batch(TEXTS)


def test_the_word_vocabulary_obeys_frequency_and_size() -> None:
    tokenizer = train_tokenizer("word", ["a a a b b c"], min_freq=2, vocab_size=5)
    assert tokenizer.tokens(range(tokenizer.vocab_size))[4:] == ["a"]


# sentencepiece


@pytest.mark.parametrize("name", SUBWORD)
@given(text=known_text)
def test_subwords_give_the_normalized_text_back(name: str, text: str) -> None:
    tokenizer = TRAINED[name]
    assert tokenizer.decode(tokenizer.encode(text)) == normalize(text)


def test_bytes_spell_what_the_texts_never_had() -> None:
    tokenizer = TRAINED["bytes"]
    assert tokenizer.decode(tokenizer.encode("Le 猫 dort 😀")) == "Le 猫 dort 😀"


def test_without_bytes_an_unknown_character_shows() -> None:
    tokenizer = TRAINED["unigram"]
    ids = tokenizer.encode("Le 猫 dort.")
    assert UNK_ID in ids
    assert tokenizer.tokenize("Le 猫 dort.")[ids.index(UNK_ID)] == "猫"
    assert tokenizer.decode(ids) == "Le ⁇ dort."


@pytest.mark.parametrize("name", SUBWORD)
def test_sampled_pieces_spell_the_same_text(name: str) -> None:
    tokenizer = TRAINED[name]
    sampled = tokenizer.encode_batch(TEXTS, sampling_alpha=0.2)
    assert sampled != tokenizer.encode_batch(TEXTS)
    assert list(map(tokenizer.decode, sampled)) == TEXTS


@pytest.mark.parametrize("name", SUBWORD)
def test_the_same_seed_repeats_the_samples(name: str) -> None:
    tokenizer = TRAINED[name]
    draws = []
    for seed in (5, 5, 6):
        seed_sampling(seed)
        draws.append([*tokenizer.encode_batch(TEXTS, sampling_alpha=0.2), tokenizer.encode_sampled(TEXTS[9], 0.2)])
    assert draws[0] == draws[1] != draws[2]


def test_alpha_zero_draws_nothing() -> None:
    tokenizer = TRAINED["unigram"]
    assert [tokenizer.encode_sampled(text, 0.0) for text in TEXTS] == tokenizer.encode_batch(TEXTS)


@pytest.mark.parametrize("seed", [-1, 2**32 - 1])
def test_a_seed_outside_is_refused(seed: int) -> None:
    with pytest.raises(InvalidValue, match="seed"):
        seed_sampling(seed)


def test_pieces_are_named_as_the_vocabulary_names_specials() -> None:
    assert TRAINED["bpe"].tokens([0, 1, 2, 3]) == ["<unk>", "<pad>", "<bos>", "<eos>"]


@pytest.mark.parametrize("model_type", ["unigram", "bpe"])
def test_a_small_corpus_gives_fewer_pieces_than_asked_for(model_type: str) -> None:
    tokenizer = train_tokenizer("sentencepiece", TEXTS, model_type=model_type)
    assert len(set("".join(TEXTS))) < tokenizer.vocab_size < 8000


def test_a_vocabulary_without_room_for_the_characters_is_refused_with_the_least_size() -> None:
    with pytest.raises(InvalidValue, match="vocab_size is 20; allowed is a whole number from") as caught:
        train_tokenizer("sentencepiece", TEXTS, vocab_size=20)
    least = int(caught.value.allowed.split("from ")[1].split(",")[0])
    assert train_tokenizer("sentencepiece", TEXTS, vocab_size=least + 1, model_type="bpe").vocab_size <= least + 1


@pytest.mark.parametrize(
    ("field", "value"), [("model_type", "char"), ("vocab_size", 4), ("character_coverage", 0.5), ("min_freq", 0)]
)
def test_a_training_parameter_outside_is_refused_by_name(field: str, value: object) -> None:
    kind = "word" if field == "min_freq" else "sentencepiece"
    with pytest.raises(InvalidValue, match=field):
        train_tokenizer(kind, TEXTS, **{field: value})  # type: ignore[arg-type]


# files that are none


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (b"", "empty"),
        (b"hello", "not a sentencepiece model"),
        (b'{"kind": "word"', "not JSON"),
        (b'{"kind": "letters", "format_version": 1}', "not a word tokenizer"),
        (json.dumps({"kind": "word", "format_version": 2}).encode(), "version 1"),
        (json.dumps({"kind": "word", "format_version": 1}).encode(), "not a vocabulary"),
        (b"{\xff", "not JSON"),
        (b"\x80\x04\x95\x00.", "not a sentencepiece model"),
    ],
    ids=["empty", "text", "cut-off-json", "kind", "version", "no-vocab", "latin-1", "pickle"],
)
def test_a_file_that_is_no_tokenizer_is_refused_by_name(tmp_path: Path, content: bytes, cause: str) -> None:
    path = tmp_path / "tokenizer"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        load_tokenizer(path)
    assert caught.value.path == path
    assert cause in str(caught.value)


def half_a_model(folder: Path) -> bytes:
    content = TRAINED["bpe"].save(folder / "whole").read_bytes()
    return content[: len(content) // 2 + 1]


def foreign_model() -> bytes:
    """A sentencepiece model with the ids that other projects use."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS), model_writer=model, vocab_size=100, hard_vocab_limit=False, minloglevel=2
    )
    return model.getvalue()


def test_a_cut_off_or_foreign_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a sentencepiece model"):
        SentencePieceTokenizer(half_a_model(tmp_path))
    with pytest.raises(DataError, match=r"ids \(0, -1, 1, 2\)"):
        SentencePieceTokenizer(foreign_model())


@pytest.mark.parametrize("name", ["missing", "."])
def test_a_path_that_is_no_file_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        load_tokenizer(tmp_path / name)
