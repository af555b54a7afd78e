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
        parents: [N], -1 for dead rows, whose scores may be anything; None where there are none.

    Attributes:
        num_forbidden: the first so many tokens may not come; `log_probs` says so itself.
    """

    def __init__(
        self,
        logits: Tensor,
        log_norms: Tensor | None = None,
        peaks: Tensor | None = None,
        *,
        parents: Tensor | None = None,
    ) -> None:
        self.logits = logits
        self.log_norms = log_norms
        self.num_forbidden = 0
        self._peaks = peaks
        self._parents = parents

    def __len__(self) -> int:
        return self.logits.shape[0]

    @property
    def is_in_blocks(self) -> bool:
        return self.logits.shape[1] % BLOCK == 0

    def peaks(self) -> Tensor:
        """[N, V / 64], of what the logits are now; it may be a forbidden token's."""
        if self._peaks is None:
            self._peaks = self.logits.view(len(self), -1, BLOCK).amax(dim=2)
        return self._peaks

    def rows(self, start: int, end: int) -> TokenScores:
        """Views of some rows."""
        if start == 0 and end == len(self):
            return self
        norms, peaks, parents = (
            None if part is None else part[start:end] for part in (self.log_norms, self._peaks, self._parents)
        )
        return TokenScores(self.logits[start:end], norms, peaks, parents=parents)

    @torch.inference_mode()
    def log_probs(self) -> Tensor:
        """[N, V], which the caller may overwrite; 0 for tokens of dead rows."""
        if self._parents is not None:
            dead = (self._parents < 0).nonzero().flatten()
            self.logits.index_fill_(0, dead, 0.0)
            if self.log_norms is not None:
                self.log_norms.index_fill_(0, dead, 0.0)
            self._parents = None
        if self.log_norms is not None:
            self.logits.sub_(self.log_norms[:, None])
            self.log_norms = None
        self.logits[:, : self.num_forbidden] = float("-inf")
        self._peaks = None
        return self.logits

    def forbid_first(self, num: int) -> None:
        """The first few tokens, less than a block of them, become impossible in every row."""
        self.num_forbidden = max(self.num_forbidden, num)
