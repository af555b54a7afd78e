"""Train, dev and test sentences out of sentence pairs, the same ones in every process, and no sentence in two of them.

A pair goes where the hash of its source sentence says: all translations of a sentence stay together, as its references,
and a test sentence stays one when the dataset grows. What a translation shares with a sentence held out is dropped from
the side that is larger: of train what is in dev or test, of dev what is in test.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from model.data.corpus import Example, Pair

_HASH_RANGE = 2**64


@dataclass(frozen=True, kw_only=True)
class Splits:
    """The three parts; `num_dropped` pairs were left out because they share a sentence with a part held out."""

    train: list[Pair]
    dev: list[Example]
    test: list[Example]
    num_dropped: int


def split(
    pairs: Iterable[Pair],
    *,
    dev_share: float = 0.0,
    test_share: float = 0.0,
    dev: Iterable[Pair] = (),
    test: Iterable[Pair] = (),
) -> Splits:
    """Splits `pairs`; `dev` and `test` are pairs of datasets of their own, added to what the shares hold out."""
    rest, dev_pairs, test_pairs = [], list(dev), list(test)
    unique = list(dict.fromkeys(pairs))
    for pair, position in zip(unique, _positions(unique, dev_share, test_share), strict=True):
        if position < test_share:
            test_pairs.append(pair)
        elif position < test_share + dev_share:
            dev_pairs.append(pair)
        else:
            rest.append(pair)
    kept_dev = _without(dev_pairs, _sentences(test_pairs))
    kept_train = _without(rest, _sentences(test_pairs) | _sentences(dev_pairs))
    return Splits(
        train=kept_train,
        dev=_examples(kept_dev),
        test=_examples(test_pairs),
        num_dropped=len(dev_pairs) - len(kept_dev) + len(rest) - len(kept_train),
    )


def _positions(pairs: list[Pair], dev_share: float, test_share: float) -> list[float]:
    """Where each pair's source lies in [0, 1). A small set may have nothing in a share: the lowest then move there."""
    positions = {pair.src: _position(pair.src) for pair in pairs}
    ranked = sorted(positions, key=lambda src: positions[src])
    if test_share and ranked and positions[ranked[0]] >= test_share:
        positions[ranked[0]] = 0.0
    if dev_share and not any(test_share <= place < test_share + dev_share for place in positions.values()):
        first = next((src for src in ranked if positions[src] >= test_share + dev_share), None)
        if first is not None:
            positions[first] = test_share
    return [positions[pair.src] for pair in pairs]


def _position(text: str) -> float:
    return int.from_bytes(hashlib.sha256(_key(text).encode()).digest()[:8], "big") / _HASH_RANGE


def _key(text: str) -> str:
    """Sentences that differ in case only are one."""
    return text.casefold()


def _sentences(pairs: Iterable[Pair]) -> set[tuple[int, str]]:
    return {(side, _key(text)) for pair in pairs for side, text in enumerate(pair)}


def _without(pairs: list[Pair], held_out: set[tuple[int, str]]) -> list[Pair]:
    return [pair for pair in pairs if (0, _key(pair.src)) not in held_out and (1, _key(pair.tgt)) not in held_out]


def _examples(pairs: Iterable[Pair]) -> list[Example]:
    """Each source once, with all its translations."""
    refs: dict[str, dict[str, None]] = {}
    for pair in pairs:
        refs.setdefault(pair.src, {})[pair.tgt] = None
    return [Example(src=src, refs=tuple(texts)) for src, texts in refs.items()]
