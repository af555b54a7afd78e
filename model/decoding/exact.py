"""Exact search: goes on from a beam's translation until it has a better one, or the proof that there is none.

Depth-first branch and bound (Stahlberg and Byrne 2019, "On NMT Search Errors and Model Errors: Cat Got Your Tongue?").
A node is a partial translation; to *extend* it is to ask the network what may follow. Log-probabilities only fall, so
no continuation of a node scores higher than the node itself at the full length, and a node whose bound does not exceed
the best score so far is not worth extending. With length penalty 0:

    beam      "b<eos>" -1.9                        is the best so far
    root      "a" -0.5   "b" -0.9   "c" -2.3       "c" is pruned; "a" is extended next
    "a"       "a<eos>" -1.6   "aa" -1.7            a better one ends here: the best so far is -1.6, and "aa" is pruned
    "b"       "b<eos>" -1.9   "bc" -2.5            nothing is left: "a<eos>" is optimal

Candidates are the hypotheses that end themselves within the limit and break no constraint. A hypothesis that was cut
off is none of them, and any candidate replaces it.

Where several nodes wait, the deepest go first, and of one node's children the best. Each keeps the state that its
children start from in a *slot* of the lane until the last child has been extended or pruned; with K rows a segment and
T tokens at most, no more than K·T slots are taken.

Never sees the network. Shape letters: R segments, K rows a segment, V vocabulary (padded), S source length, C children
that are worth extending, P parked states.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from model.data.vocab import EOS_ID
from model.decoding.constraints import constrain
from model.decoding.coverage import log_coverage
from model.decoding.lane import Absorbed, LaneSearch, LiveSegment
from model.decoding.search import NEVER, Finish, Hypothesis, SegmentResult
from model.network.token_scores import TokenScores

_LOWEST = torch.finfo(torch.float32).min


@dataclass(eq=False)
class _Slots:
    """Numbers of parked states, which are given out and taken back."""

    num: int = 0
    free: list[int] = field(default_factory=list)

    def take(self) -> int:
        if self.free:
            return self.free.pop()
        self.num += 1
        return self.num - 1


@dataclass(eq=False)
class _Node:
    """A partial translation.

    Attributes:
        tokens, log_prob: of it; the root has none and 0.
        start: slot of its parent's state, from which the step that extends it starts; -1 for the root.
        looked: [S], the attention of all steps before; with its own once it is extended. None where nobody asks.
        slot: where its own state is parked, once it is extended and has children that wait.
        waiting: log-probability and token of those children, worst first.
    """

    tokens: tuple[int, ...]
    log_prob: float
    start: int
    looked: Tensor | None
    slot: int = -1
    waiting: list[tuple[float, int]] = field(default_factory=list)


@dataclass(eq=False)
class _Proof:
    """What a segment's search has come to.

    Attributes:
        best: the best hypothesis so far.
        extending: nodes in the rows of the coming step, at most K.
        stack: extended nodes with children that wait, deepest last.
        num_nodes: nodes extended, those of the coming step included.
    """

    best: Hypothesis
    extending: list[_Node]
    stack: list[_Node] = field(default_factory=list)
    num_nodes: int = 1
    num_steps: int = 0

    @property
    def score_to_beat(self) -> float:
        return self.best.score if self.best.finish == "eos" else NEVER


class ExactSearch(LaneSearch):
    """The proofs of all segments of one width."""

    parks: ClassVar[bool] = True

    def __init__(self, k: int, device: torch.device) -> None:
        super().__init__(k, device)
        self.num_first_rows = 1  # the root's
        self._proofs: list[_Proof] = []
        self._slots = _Slots()

    def add(self, segments: Sequence[LiveSegment]) -> None:
        super().add(segments)
        for segment in segments:
            assert segment.best is not None, "a beam comes first"
            root = _Node((), 0.0, -1, None)
            self._proofs.append(_Proof(segment.best.hypotheses[0], [root]))

    def absorb(self, scores: TokenScores, attention: Tensor | None) -> Absorbed:
        rows = [
            (i * self.k + j, i, node) for i, proof in enumerate(self._proofs) for j, node in enumerate(proof.extending)
        ]
        log_probs = self._constrain(scores, rows)
        self._end(log_probs[:, EOS_ID].tolist(), attention, rows)
        log_probs[:, EOS_ID] = NEVER
        self._find_children(log_probs, rows)
        # States are parked before the rows' new ones are read: a slot that `_choose` gives back still holds its state
        # for the coming step, and so none may be taken after it.
        parked = self._park(rows)
        ids: list[int] = []
        starts: list[int] = []
        for i, proof in enumerate(self._proofs):
            self._choose(i)
            num_dead = self.k - len(proof.extending)
            ids += [*(node.tokens[-1] for node in proof.extending), *[EOS_ID] * num_dead]
            starts += [*(node.start for node in proof.extending), *[-1] * num_dead]
        return Absorbed(
            ids=np.array(ids),
            rows=np.array(starts),
            done=[(i, self._result(i, "length")) for i, proof in enumerate(self._proofs) if not proof.extending],
            parked=parked,
        )

    def _constrain(self, scores: TokenScores, rows: Sequence[tuple[int, int, _Node]]) -> Tensor:
        """Log-probabilities [R·K, V] of what is allowed, row by row: the nodes of one segment differ in length."""
        constrain(scores, 1, (), lambda _: [])
        log_probs = scores.log_probs()
        for row, position, node in rows:
            segment = self.segments[position]
            if segment.options.is_constrained:
                _constrain_row(log_probs[row : row + 1], segment, node.tokens)
        return log_probs

    def _end(self, ends: Sequence[float], attention: Tensor | None, rows: Sequence[tuple[int, int, _Node]]) -> None:
        """Every node might end here, at these log-probabilities [R·K] of `<eos>`; the best so far may change."""
        for row, position, node in rows:
            segment, proof = self.segments[position], self._proofs[position]
            if attention is not None and segment.options.coverage_penalty:
                node.looked = attention[row] if node.looked is None else node.looked + attention[row]
            if ends[row] == NEVER:
                continue
            log_prob = node.log_prob + ends[row]
            coverage = 0.0 if node.looked is None else log_coverage(node.looked[: segment.num_src])
            score = segment.options.score(log_prob, len(node.tokens) + 1, coverage)
            if score > proof.score_to_beat:
                proof.best = Hypothesis(token_ids=node.tokens, log_prob=log_prob, score=score, finish="eos")

    def _find_children(self, log_probs: Tensor, rows: Sequence[tuple[int, int, _Node]]) -> None:
        """Of log_probs [R·K, V], those worth extending: the only look at the vocabulary is one comparison."""
        least = [math.inf] * len(log_probs)  # that a token must have
        for row, position, node in rows:
            segment = self.segments[position]
            if len(node.tokens) + 2 <= segment.limit:  # it and `<eos>` must fit
                needed = self._proofs[position].score_to_beat * segment.limit**segment.options.length_penalty
                least[row] = max(_LOWEST, needed - node.log_prob)
        # The limits are rounded to float32, to the nearest: "at least" loses none, and `_choose` looks again.
        is_worth = log_probs >= torch.tensor(least, device=self.device)[:, None]
        found_rows, found_ids = is_worth.nonzero(as_tuple=True)  # [C]
        values, order = log_probs[found_rows, found_ids].sort(stable=True)
        nodes = {row: node for row, _, node in rows}
        children = zip(found_rows[order].tolist(), found_ids[order].tolist(), values.tolist(), strict=True)
        for row, token, value in children:
            nodes[row].waiting.append((nodes[row].log_prob + value, token))

    def _park(self, rows: Sequence[tuple[int, int, _Node]]) -> tuple[list[int], list[int]]:
        """Puts the nodes that have children on their stacks, the first row's on top.

        Returns:
            Rows [P] and slots [P] where their states are to be kept.
        """
        parked: list[int] = []
        slots: list[int] = []
        for row, position, node in reversed(rows):
            if node.waiting:
                node.slot = self._slots.take()
                self._proofs[position].stack.append(node)
                parked.append(row)
                slots.append(node.slot)
        return parked, slots

    def _choose(self, position: int) -> None:
        """The nodes that the segment's rows extend next; none where nothing is left or no more may be extended."""
        segment, proof = self.segments[position], self._proofs[position]
        num_wanted = min(self.k, segment.options.max_nodes - proof.num_nodes)
        proof.extending = []
        while proof.stack and len(proof.extending) < num_wanted:
            node = proof.stack[-1]
            log_prob, token = node.waiting.pop()
            is_worth = segment.options.best_score_below(log_prob, segment.limit) > proof.score_to_beat
            if is_worth:
                proof.extending.append(_Node((*node.tokens, token), log_prob, node.slot, node.looked))
            if not is_worth or not node.waiting:  # those that wait still are worse
                proof.stack.pop()
                self._slots.free.append(node.slot)
        proof.num_nodes += len(proof.extending)
        proof.num_steps += 1

    def keep(self, order: Sequence[int]) -> None:
        for i in set(range(len(self._proofs))) - set(order):
            self._slots.free.extend(node.slot for node in self._proofs[i].stack)
        super().keep(order)
        self._proofs = [self._proofs[i] for i in order]

    def cut(self, position: int, finish: Finish) -> SegmentResult:
        return self._result(position, finish)

    def agreed_ids(self, position: int) -> list[int]:
        """Nothing is sure before the proof: a better translation may begin with any token."""
        return []

    def _result(self, position: int, cut: Finish) -> SegmentResult:
        """Of what there is; `cut` is why a hypothesis stops that has not ended itself."""
        segment, proof = self.segments[position], self._proofs[position]
        assert segment.best is not None
        best, bound = proof.best, self._bound(position)
        if best.finish != "eos":
            best = replace(best, finish=cut)
        is_empty = best.finish != "eos" and bound == NEVER  # no hypothesis ends itself: there is none to be the best
        return replace(
            segment.best,
            hypotheses=(best,),
            num_steps=segment.best.num_steps + proof.num_steps,
            num_proof_steps=proof.num_steps,
            num_nodes=proof.num_nodes,
            is_optimal=None if is_empty else bound <= proof.score_to_beat,
            bound=None if is_empty else max(bound, best.score),
        )

    def _bound(self, position: int) -> float:
        """No candidate that is still to be found scores higher; the beam may have known that already."""
        segment, proof = self.segments[position], self._proofs[position]
        log_probs = [node.log_prob for node in proof.extending]
        log_probs += [node.waiting[-1][0] for node in proof.stack]
        if not log_probs:
            return NEVER
        bound = segment.options.best_score_below(max(log_probs), segment.limit)
        known = segment.best.bound if segment.best is not None else None
        return bound if known is None else min(bound, known)


def _constrain_row(log_probs: Tensor, segment: LiveSegment, tokens: Sequence[int]) -> None:
    """Forbids in place, in log_probs [1, V], what may not follow these tokens."""
    constrain(TokenScores(log_probs), 1, [replace(segment, num_tokens=len(tokens))], lambda _: [list(tokens)])
