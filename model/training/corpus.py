"""The pairs of a run as token ids, and which of them go together in each epoch. Everything follows from the seed."""

from __future__ import annotations

from collections.abc import Sequence

from model.config import TrainingConfig
from model.data.batching import bucketed_batches
from model.data.corpus import Pair
from model.data.tokenizer import Tokenizer, seed_sampling
from model.errors import TrainingError


class TrainingCorpus:
    """Pairs within the limits of length, as token ids.

    Args:
        num_processes: batches hold `batch_tokens` for each; see `share`.

    Attributes:
        pairs: those that are kept.
        num_too_long: those that are not.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        src_tokenizer: Tokenizer,
        tgt_tokenizer: Tokenizer,
        config: TrainingConfig,
        num_processes: int,
    ) -> None:
        self._config = config
        self._tokenizers = (src_tokenizer, tgt_tokenizer)
        self._max_tokens = config.batch_tokens * num_processes
        src = src_tokenizer.encode_batch([pair.src for pair in pairs])
        tgt = tgt_tokenizer.encode_batch([pair.tgt for pair in pairs])
        kept = [
            i
            for i in range(len(pairs))
            if 0 < len(src[i]) < config.max_src_tokens and 0 < len(tgt[i]) < config.max_tgt_tokens
        ]
        self.num_too_long = len(pairs) - len(kept)
        if len(kept) < 2:
            raise TrainingError(f"{len(kept)} pairs are left within max_src_tokens and max_tgt_tokens; 2 are needed")
        self.pairs = [pairs[i] for i in kept]
        self._src_ids, self._tgt_ids = [src[i] for i in kept], [tgt[i] for i in kept]

    def batches(self, epoch: int) -> list[list[int]]:
        """Which pairs go together, batch by batch; the same number of batches in every epoch."""
        return bucketed_batches(
            [len(ids) + 1 for ids in self._src_ids],
            [len(ids) + 1 for ids in self._tgt_ids],
            max_tokens=self._max_tokens,
            seed=self._config.seed,
            epoch=epoch,
        )

    def epoch_ids(self, epoch: int) -> tuple[list[list[int]], list[list[int]]]:
        """The epoch's token ids: cut anew each time where sub-words are sampled, the same again on a resume."""
        alpha = self._config.subword_sampling
        if not alpha:
            return self._src_ids, self._tgt_ids
        seed_sampling((self._config.seed * 1000 + epoch) % (2**32 - 1))
        src_tokenizer, tgt_tokenizer = self._tokenizers
        return (
            src_tokenizer.encode_batch([pair.src for pair in self.pairs], sampling_alpha=alpha),
            tgt_tokenizer.encode_batch([pair.tgt for pair in self.pairs], sampling_alpha=alpha),
        )


def share(batch: Sequence[int], rank: int, num_processes: int) -> list[int]:
    """One process's rows of a batch: every `num_processes`-th, so that all get sentences of like length.

    Empty where the batch has fewer rows than there are processes.
    """
    return list(batch[rank::num_processes])
