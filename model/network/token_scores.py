"""What a step says of every row's next token, in the form in which it came: normalised or not.

Searches mostly want the best few, and a few values beside them: then logits need no second pass over the vocabulary.

Shape letters: N rows, V vocabulary (padded to a multiple of 64, with -inf).
"""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 64


class TokenScores:
    """Log-probabilities of N rows: logits less the row's `log_norms`.

    Args:
        logits: [N, V] float32.
        log_norms: [N], the logarithm of the sum of a row's exponentials; None where it is zero.
        peaks: [N, V / 64], the largest logit of each block; None to have it found out.
    """

    def __init__(self, logits: Tensor, log_norms: Tensor | None = None, peaks: Tensor | None = None) -> None:
        self.logits = logits
        self.log_norms = log_norms
        self._peaks = peaks

    def __len__(self) -> int:
        return self.logits.shape[0]

    @property
    def is_in_blocks(self) -> bool:
        return self.logits.shape[1] % BLOCK == 0

    def peaks(self) -> Tensor:
        """[N, V / 64]."""
        if self._peaks is None:
            self._peaks = self.logits.view(len(self), -1, BLOCK).amax(dim=2)
        return self._peaks

    def rows(self, start: int, end: int) -> TokenScores:
        """Views of some rows."""
        if start == 0 and end == len(self):
            return self
        norms = None if self.log_norms is None else self.log_norms[start:end]
        return TokenScores(self.logits[start:end], norms, None if self._peaks is None else self._peaks[start:end])

    @torch.inference_mode()
    def log_probs(self) -> Tensor:
        """[N, V], which the caller may overwrite; the peaks are found out anew afterwards."""
        if self.log_norms is not None:
            self.logits.sub_(self.log_norms[:, None])
            self.log_norms = None
        self._peaks = None
        return self.logits

    @torch.inference_mode()
    def forbid_first(self, num: int) -> None:
        """The first few tokens, less than a block of them, become impossible in every row."""
        self.logits[:, :num] = float("-inf")
        if self._peaks is not None:
            self._peaks[:, 0] = self.logits[:, :BLOCK].amax(dim=1)
