"""Beam search over many segments at once: pure bookkeeping on log-probabilities. Never sees the network.

Shape letters: R segments, K beam width, V vocabulary, T tokens so far.

All segments of one width K live in one `BeamSearch`, so that a step costs a handful of tensor operations however many
there are. Greedy search is K = 1.

One step, for K = 2 over the tokens a, b and <eos> (probabilities, not logarithms, for the example):

    live      "a" 0.6              "b" 0.3
    extended  "aa" 0.30  "ab" 0.06  "a<eos>" 0.24      "ba" 0.06  "bb" 0.03  "b<eos>" 0.21
    best K    "aa" 0.30  "a<eos>" 0.24                 "a<eos>" is finished
    live      "aa" 0.30  "ab" 0.06 or "ba" 0.06        the best K that go on, ties by position

A segment is done when its n_best finished hypotheses cannot be beaten any more: the best live row, were all its coming
tokens certain and it as long as it may be, scores no higher. No rule counts finished hypotheses: that would favour
short ones.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from model.data.vocab import BOS_ID, EOS_ID, PAD_ID, UNK_ID
from model.decoding.search import Hypothesis, SearchOptions, SegmentResult

_NEVER = float("-inf")
BANNED_IDS = (UNK_ID, PAD_ID, BOS_ID)  # nobody wants to read them


@dataclass
class _Segment:
    """What is kept in Python for a segment: its options, and its finished hypotheses, worst first in a heap."""

    handle: int
    options: SearchOptions
    limit: int
    num_tokens: int = 0
    num_finished: int = 0
    finished: list[tuple[float, int, Hypothesis]] = field(default_factory=list)

    def keep(self, hypothesis: Hypothesis) -> None:
        """Among the n_best; of equal scores the earlier stays."""
        self.num_finished += 1
        entry = (hypothesis.score, -self.num_finished, hypothesis)
        if len(self.finished) < self.options.n_best:
            heapq.heappush(self.finished, entry)
        elif entry[:2] > self.finished[0][:2]:
            heapq.heapreplace(self.finished, entry)

    def cannot_be_beaten(self, best_live: float) -> bool:
        """Whether a live row of that log-probability, continued for certain up to the limit, scores no higher."""
        if len(self.finished) < self.options.n_best:
            return False
        return bool(best_live / self.limit**self.options.length_penalty <= self.finished[0][0])

    def result(self) -> SegmentResult:
        best_first = sorted(self.finished, key=lambda entry: entry[:2], reverse=True)
        return SegmentResult(hypotheses=tuple(entry[2] for entry in best_first), num_steps=self.num_tokens)


class BeamSearch:
    """The live rows of all segments of one beam width.

    Rows stand segment by segment, K for each. `absorb` takes the rows' log-probabilities and says which row each new
    row continues, and with which token; a segment that is done leaves, and its rows with it.

    Args:
        k: K.
        device: where log-probabilities come from.
    """

    def __init__(self, k: int, device: torch.device | str = "cpu") -> None:
        self.k = k
        self.device = torch.device(device)
        self._segments: list[_Segment] = []
        self._log_probs = torch.empty(0, k, device=self.device)  # [R, K]
        self._tokens = torch.empty(0, k, 0, dtype=torch.int64, device=self.device)  # [R, K, T], longest T

    @property
    def num_segments(self) -> int:
        return len(self._segments)

    @property
    def num_rows(self) -> int:
        return len(self._segments) * self.k

    def add(self, handle: int, options: SearchOptions, num_src_tokens: int) -> None:
        """A new segment, whose rows come after all others. Only its first row is alive before the first step."""
        self._segments.append(_Segment(handle, options, options.length_limit(num_src_tokens)))
        alive = torch.full((1, self.k), _NEVER, device=self.device)
        alive[0, 0] = 0.0
        self._log_probs = torch.cat((self._log_probs, alive))
        blank = self._tokens.new_zeros(1, self.k, self._tokens.shape[2])
        self._tokens = torch.cat((self._tokens, blank))

    def remove(self, handles: set[int]) -> Tensor | None:
        """Drops segments; returns the indices [R'] of those that stay, None where none left."""
        keep = [i for i, segment in enumerate(self._segments) if segment.handle not in handles]
        if len(keep) == len(self._segments):
            return None
        index = torch.tensor(keep, dtype=torch.int64, device=self.device)
        self._segments = [self._segments[i] for i in keep]
        self._log_probs = self._log_probs[index]
        longest = max((segment.num_tokens for segment in self._segments), default=0)
        self._tokens = self._tokens[index, :, :longest]
        return index

    def absorb(self, log_probs: Tensor) -> tuple[Tensor, Tensor, list[tuple[int, SegmentResult]]]:
        """Takes a step.

        Args:
            log_probs: [R·K, V] float32, of each row's next token. Overwritten.

        Returns:
            For every row the row that it continues [R·K] int64 and its new token [R·K] int64, and the segments that
            are done, by handle. Their rows are still there: `remove` drops them.
        """
        num_segments, k = len(self._segments), self.k
        self._constrain(log_probs)
        num_candidates = min(2 * k, log_probs.shape[1])
        row_log_probs, row_tokens = log_probs.topk(num_candidates, dim=1)  # [R·K, C]
        totals = self._log_probs[:, :, None] + row_log_probs.view(num_segments, k, num_candidates)
        best, index = totals.flatten(1).topk(min(2 * k, k * num_candidates), dim=1)  # [R, 2K], best first
        tokens = row_tokens.view(num_segments, -1).gather(1, index)
        parents = index // num_candidates  # [R, 2K]
        ends = (tokens == EOS_ID) & (best > _NEVER)
        self._finish(ends[:, :k], best, parents)
        # The best K that go on, in their order: among 2K candidates at most K end.
        going = torch.where(tokens == EOS_ID, _NEVER, best)
        self._log_probs, order = going.topk(k, dim=1)  # [R, K]
        tokens, parents = tokens.gather(1, order), parents.gather(1, order)
        self._append(tokens, parents)
        rows = parents + torch.arange(num_segments, device=self.device)[:, None] * k
        return rows.flatten(), tokens.flatten(), self._done()

    def _constrain(self, log_probs: Tensor) -> None:
        """Bans special tokens and an early <eos>, and forces prefixes."""
        log_probs[:, BANNED_IDS] = _NEVER
        for i, segment in enumerate(self._segments):
            options, t = segment.options, segment.num_tokens
            rows = log_probs[i * self.k : (i + 1) * self.k]
            if t < len(options.prefix_ids):
                forced = rows[:, options.prefix_ids[t]].clone()
                rows.fill_(_NEVER)
                rows[:, options.prefix_ids[t]] = forced.clamp_min(torch.finfo(torch.float32).min)
            elif t < options.min_length:
                rows[:, EOS_ID] = _NEVER

    def _finish(self, ends: Tensor, log_probs: Tensor, parents: Tensor) -> None:
        """Keeps the hypotheses that ended among the best K."""
        for i, rank in ends.nonzero().tolist():
            segment = self._segments[i]
            self._keep(segment, i, int(parents[i, rank]), float(log_probs[i, rank]), ended=True)

    def _keep(self, segment: _Segment, index: int, row: int, log_prob: float, *, ended: bool) -> None:
        length = segment.num_tokens + (1 if ended else 0)
        segment.keep(
            Hypothesis(
                token_ids=tuple(self._tokens[index, row, : segment.num_tokens].tolist()),
                log_prob=log_prob,
                score=log_prob / length**segment.options.length_penalty,
                finish="eos" if ended else "length",
            )
        )

    def _append(self, tokens: Tensor, parents: Tensor) -> None:
        longest = 1 + max(segment.num_tokens for segment in self._segments)
        history = self._tokens.gather(1, parents[:, :, None].expand(-1, -1, self._tokens.shape[2]))
        if history.shape[2] < longest:
            history = torch.cat((history, history.new_zeros(*history.shape[:2], longest + 15 - history.shape[2])), 2)
        at = torch.tensor([segment.num_tokens for segment in self._segments], device=self.device)
        self._tokens = history.scatter(2, at[:, None, None].expand(-1, self.k, 1), tokens[:, :, None])
        for segment in self._segments:
            segment.num_tokens += 1

    def _done(self) -> list[tuple[int, SegmentResult]]:
        done: list[tuple[int, SegmentResult]] = []
        for i, (segment, best_live) in enumerate(zip(self._segments, self._log_probs[:, 0].tolist(), strict=True)):
            if segment.num_tokens >= segment.limit or best_live == _NEVER:
                self._cut_off(i, segment)
            elif not segment.cannot_be_beaten(best_live) and not (self.k == 1 and segment.finished):
                continue
            done.append((segment.handle, segment.result()))
        return done

    def _cut_off(self, index: int, segment: _Segment) -> None:
        """At the length limit the live rows fill the places that no finished hypothesis took."""
        for row, log_prob in enumerate(self._log_probs[index].tolist()):
            if len(segment.finished) >= segment.options.n_best or (log_prob == _NEVER and segment.finished):
                break
            self._keep(segment, index, row, log_prob, ended=False)


def handles_of(results: Sequence[tuple[int, SegmentResult]]) -> set[int]:
    """The handles of finished segments."""
    return {handle for handle, _ in results}
