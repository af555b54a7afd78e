"""The bodies of requests and answers, and how a request's body becomes frozen parameters. Knows no HTTP."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

from model.bleu import METRICS, MetricScore
from model.decoding.search import DEFAULT_MAX_NODES, OWNERS, SearchOptions
from model.errors import InvalidValue
from model.translator import Explanation, Translation, search_options
from service.errors import LimitExceeded
from service.inference.served import TranslateCall, TranslateResult
from service.settings import Settings

SearchName = Literal["greedy", "beam", "sample", "exact"]
MetricName = Literal["bleu", "chrf", "ter", "bleu-d2l"]


def _arm(value: Any) -> str:
    return "list" if isinstance(value, list) else "one"


# Told apart by hand, so that an error is about the arm that was meant, not about both.
OneOrMany = Annotated[
    Annotated[str, Tag("one")] | Annotated[list[str], Tag("list")],
    Discriminator(_arm),
]


class Body(BaseModel):
    """A request's body: no unknown fields, and no "5" or true where a number belongs."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class SearchFields(Body):
    """The fields that choose a model and a search."""

    source: str | None = Field(None, description="source language code; chooses among models", examples=["en"])
    target: str | None = Field(None, description="target language code; chooses among models", examples=["fr"])
    model: str | None = Field(None, description="name of a model; default the only or default one", examples=["en-fr"])
    search: SearchName | None = Field(None, description="default beam; greedy where k is 1")
    k: int | None = Field(None, ge=1, description="beam width; k alone means beam, k = 1 is greedy", examples=[5])
    length_penalty: float = Field(
        1.0, ge=0, le=10, allow_inf_nan=False, description="exponent of the length that a log-probability is divided by"
    )
    max_length: int | None = Field(None, ge=1, description="most tokens of a translated sentence")
    min_length: int = Field(0, ge=0, description="fewest tokens of a translated sentence")
    coverage_penalty: float = Field(
        0.0,
        ge=0,
        le=10,
        allow_inf_nan=False,
        description="weight of the penalty for source tokens that got no attention",
    )
    no_repeat_ngram: int = Field(0, ge=0, description="no n-gram of this many tokens occurs twice; 0 for no such rule")
    banned: list[str] = Field([], description="words or phrases that may not occur", examples=[["salut"]])
    temperature: float = Field(
        1.0, gt=0, le=100, allow_inf_nan=False, description="of sample: below 1 more cautious, above 1 bolder"
    )
    top_k: int = Field(0, ge=0, description="sample draws among this many most probable tokens; 0 for all")
    top_p: float = Field(
        1.0,
        gt=0,
        le=1,
        allow_inf_nan=False,
        description="sample draws among the fewest tokens that hold this probability",
    )
    seed: int | None = Field(None, ge=0, lt=2**63, description="of sample: the same seed gives the same translation")
    stop_when: Literal["proven", "likely", "k_ended"] = Field(
        "likely",
        description="of a beam: when no other hypothesis can win; when none is likely to; when k of them have ended",
    )
    max_nodes: int = Field(
        DEFAULT_MAX_NODES, ge=1, description="nodes that exact search may extend before it gives up proving"
    )

    def search_options(
        self, settings: Settings, *, n_best: int = 1, explain: bool = False, tree: bool = False
    ) -> SearchOptions:
        """The search asked for, defaults filled in. Raises InvalidValue for what is too large or in conflict."""
        _check_at_most("k", self.k, settings.max_k)
        _check_at_most("max_length", self.max_length, settings.max_target_tokens)
        _check_at_most("min_length", self.min_length, settings.max_target_tokens)
        _check_at_most("n_best", n_best, settings.max_k)  # draws of sample take rows as a beam does
        given = {name: getattr(self, name) for name in OWNERS if name in self.model_fields_set}
        _check_at_most("max_nodes", given.get("max_nodes"), settings.max_nodes)
        if self.search == "exact":
            given.setdefault("max_nodes", min(self.max_nodes, settings.max_nodes))
        k = settings.default_k if self.k is None and self.search not in ("greedy", "sample") else self.k
        return search_options(
            search=self.search,
            k=k,
            n_best=n_best,
            length_penalty=self.length_penalty,
            max_length=self.max_length,
            min_length=self.min_length,
            coverage_penalty=self.coverage_penalty,
            no_repeat_ngram=self.no_repeat_ngram,
            wants_attention=explain,
            wants_tree=tree,
            **given,
        )

    def _refuse(self, *names: str, allowed: str) -> None:
        for name in names:
            if name in self.model_fields_set:
                raise InvalidValue(name, getattr(self, name), allowed)


class TranslateBody(SearchFields):
    """What to translate, and how."""

    text: OneOrMany = Field(description="a text, or a list of texts; sentences and lines in one text are kept apart")
    n_best: int = Field(1, ge=1, description="how many translations of each text, at most k")
    prefix: str = Field("", description="text that every translation has to start with", examples=["Bon"])
    explain: bool = Field(False, description="also say which tokens were read and written, at what cost, looking where")
    deadline_ms: int | None = Field(
        None, ge=1, le=86_400_000, description="time until the best translation so far is the answer", examples=[2000]
    )
    stream: bool = Field(
        False, description="answer with server-sent events: the text as it becomes sure, then all of it"
    )
    tree: bool = Field(
        False, description="with explain, of one sentence and a beam: every node that the beam looked at"
    )

    def call(self, settings: Settings) -> TranslateCall:
        """Raises InvalidValue or LimitExceeded."""
        texts = (self.text,) if isinstance(self.text, str) else tuple(self.text)
        if not texts:
            raise InvalidValue("text", [], "a string, or a list of at least one string")
        check_texts("text", texts, settings, max_texts=settings.max_texts, setting="RECURRA_MAX_TEXTS")
        check_texts("prefix", (self.prefix,), settings)
        check_texts("banned", self.banned, settings, max_texts=settings.max_texts, setting="RECURRA_MAX_TEXTS")
        if self.tree and not self.explain:
            raise InvalidValue("tree", True, "false, or true with explain")
        options = self.search_options(settings, n_best=self.n_best, explain=self.explain, tree=self.tree)
        return TranslateCall(
            texts=texts,
            options=options,
            prefix=self.prefix,
            banned=tuple(self.banned),
            deadline_seconds=None if self.deadline_ms is None else self.deadline_ms / 1000,
        )


class AlternativeAnswer(BaseModel):
    """One of the n best translations after the best."""

    text: str
    score: float = Field(description="log_prob divided by length to the power of length_penalty")
    log_prob: float = Field(description="natural logarithm of the translation's probability")


class TreeNodeAnswer(BaseModel):
    """A node of a beam's search tree."""

    parent: int = Field(description="index of its parent in the list; -1 for first tokens")
    token: str
    log_prob: float
    state: Literal["live", "finished", "pruned"]


class ExplanationAnswer(BaseModel):
    """How a translation came about; of several sentences one after the other."""

    source_tokens: list[str]
    target_tokens: list[str]
    token_log_probs: list[float] = Field(description="of each target token, given those before it")
    attention: list[list[float]] = Field(description="[T][S]: where each target token looked")
    unknown_source_tokens: list[str]
    tree: list[TreeNodeAnswer] = []

    @classmethod
    def of(cls, explanation: Explanation) -> ExplanationAnswer:
        return cls.model_validate(asdict(explanation))


class TranslationAnswer(BaseModel):
    """The translation of one text."""

    text: str
    score: float
    log_prob: float
    finish: Literal["eos", "length", "deadline"] = Field(
        description="length where the translation was cut off, deadline where time was up"
    )
    is_optimal: bool | None = Field(
        description="whether it is proven to be the best there is; null where nothing is known"
    )
    gap: float | None = Field(
        description="by how much a better translation's score could be higher at most; null where nothing is known"
    )
    alternatives: list[AlternativeAnswer]
    explanation: ExplanationAnswer | None = None

    @classmethod
    def of(cls, translation: Translation) -> TranslationAnswer:
        return cls(
            text=translation.text,
            score=translation.score,
            log_prob=translation.log_prob,
            finish=translation.finish,
            is_optimal=translation.is_optimal,
            gap=translation.gap,
            alternatives=[
                AlternativeAnswer(text=other.text, score=other.score, log_prob=other.log_prob)
                for other in translation.alternatives
            ],
            explanation=None if translation.explanation is None else ExplanationAnswer.of(translation.explanation),
        )


class Usage(BaseModel):
    """Tokens of all texts together, and where the time went."""

    source_tokens: int
    target_tokens: int
    queue_ms: float = Field(description="until the first sentence was admitted")
    encode_ms: float
    decode_ms: float

    @classmethod
    def of(cls, result: TranslateResult) -> Usage:
        return cls(
            source_tokens=result.num_source_tokens,
            target_tokens=result.num_target_tokens,
            queue_ms=_ms(result.timings.queue_seconds),
            encode_ms=_ms(result.timings.encode_seconds),
            decode_ms=_ms(result.timings.decode_seconds),
        )


class TranslateAnswer(BaseModel):
    """One item of `translations` for each text, in order."""

    model: str
    version: str
    search: str
    k: int
    translations: list[TranslationAnswer]
    usage: Usage

    @classmethod
    def of(cls, result: TranslateResult, options: SearchOptions) -> TranslateAnswer:
        return cls(
            model=result.model,
            version=result.version,
            search=options.search,
            k=options.k,
            translations=[TranslationAnswer.of(translation) for translation in result.translations],
            usage=Usage.of(result),
        )


class TokenEvent(BaseModel):
    """What of a text's translation can no longer change."""

    index: int = Field(description="number of the text, from 0")
    text: str


class ScoreBody(SearchFields):
    """Translations to score, or sources to translate and score."""

    hypotheses: list[str] | None = Field(None, description="translations to score; instead of sources")
    sources: list[str] | None = Field(None, description="texts that are translated first; instead of hypotheses")
    references: list[OneOrMany] = Field(description="for each sentence its reference, or a list of them")
    metrics: list[MetricName] = Field(["bleu", "chrf"], description="any of " + ", ".join(METRICS))
    sentence_scores: bool = Field(True, description="also score each sentence alone")

    @property
    def reference_lists(self) -> list[list[str]]:
        return [[refs] if isinstance(refs, str) else refs for refs in self.references]

    def check(self, settings: Settings) -> None:
        """Raises InvalidValue or LimitExceeded."""
        if (self.hypotheses is None) == (self.sources is None):
            given = "hypotheses and sources" if self.sources is not None else "neither hypotheses nor sources"
            raise InvalidValue("hypotheses", given, "either hypotheses, or sources to translate first")
        field = "hypotheses" if self.sources is None else "sources"
        texts = self.hypotheses or self.sources or []
        if not texts:
            raise InvalidValue(field, [], "a list of at least one string")
        if self.sources is None:
            self._refuse_search_fields()
        limit, setting = (settings.max_score_pairs, "RECURRA_MAX_SCORE_PAIRS")
        if self.sources is not None and settings.max_texts < limit:
            limit, setting = settings.max_texts, "RECURRA_MAX_TEXTS"
        check_texts(field, texts, settings, max_texts=limit, setting=setting)
        if len(self.references) != len(texts):
            allowed = f"a list of {len(texts)}, one item for each of {field}"
            raise InvalidValue("references", f"a list of {len(self.references)}", allowed)
        if not self.metrics:
            raise InvalidValue("metrics", [], "a list of at least one of " + ", ".join(METRICS))
        for i, refs in enumerate(self.reference_lists):
            if not refs:
                raise InvalidValue(f"references[{i}]", refs, "a list of at least one string")
            check_texts(f"references[{i}]", refs, settings, max_texts=settings.max_texts, setting="RECURRA_MAX_TEXTS")

    def call(self, settings: Settings) -> TranslateCall:
        """The translation that comes first, for `sources`."""
        return TranslateCall(
            texts=tuple(self.sources or ()), options=self.search_options(settings), banned=tuple(self.banned)
        )

    def _refuse_search_fields(self) -> None:
        self._refuse(*sorted(SearchFields.model_fields), allowed="nothing: hypotheses are scored as they are")


class MetricAnswer(BaseModel):
    """One metric over all sentences."""

    score: float = Field(description="0 to 100; 0 (best) and up for ter; 0 to 1 for bleu-d2l")
    precisions: list[float] = Field(description="of n-grams of 1, 2, …")
    brevity_penalty: float | None
    hypothesis_length: int | None
    reference_length: int | None
    signature: str = Field(description="all settings of the metric")
    sentence_scores: list[float]

    @classmethod
    def of(cls, score: MetricScore) -> MetricAnswer:
        return cls.model_validate(score.to_json())


class ScoreAnswer(BaseModel):
    """Corpus and sentence scores by metric."""

    num_sentences: int
    scores: dict[str, MetricAnswer]
    model: str | None = Field(None, description="what translated the sources")
    version: str | None = None
    search: str | None = None
    k: int | None = None
    hypotheses: list[str] | None = Field(None, description="the translations, where sources were given")


class LiveAnswer(BaseModel):
    status: Literal["live"] = "live"


class ReadyAnswer(BaseModel):
    status: Literal["ready"] = "ready"
    models: dict[str, str] = Field(description="state of each model")


class FaultAnswer(BaseModel):
    field: str
    value: str
    allowed: str


class ProblemAnswer(BaseModel):
    """RFC 9457 problem details (`application/problem+json`)."""

    title: str
    status: int
    detail: str
    code: str = Field(description="a stable word to branch on")
    request_id: str
    errors: list[FaultAnswer] = Field([], description="the fields at fault")


def check_texts(
    field: str,
    texts: tuple[str, ...] | list[str],
    settings: Settings,
    *,
    max_texts: int = 1,
    setting: str = "",
) -> None:
    """Raises LimitExceeded where there are too many texts, or one is too long."""
    if len(texts) > max_texts:
        raise LimitExceeded(field, len(texts), max_texts, "texts", setting)
    for i, text in enumerate(texts):
        if len(text) > settings.max_text_chars:
            name = f"{field}[{i}]" if len(texts) > 1 else field
            raise LimitExceeded(name, len(text), settings.max_text_chars, "characters", "RECURRA_MAX_TEXT_CHARS")


def _check_at_most(field: str, value: int | None, limit: int) -> None:
    if value is not None and value > limit:
        raise InvalidValue(field, value, f"a whole number up to {limit}")


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)
