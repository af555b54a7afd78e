"""`recurra score`: translations against references, or a model against a test set."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from model.errors import DataError, InvalidValue
from service.commands import options
from service.commands.lines import read_lines


def score(
    files: Annotated[
        list[Path] | None,
        typer.Argument(help="HYP REF…, a sentence a line; with --sources only REF…, or nothing for a test set."),
    ] = None,
    sources: Annotated[
        Path | None,
        typer.Option(help="Translate this first: lines, or a test set (JSON lines or TSV) that holds its references."),
    ] = None,
    model: options.ModelOption = "",
    checkpoints: options.CheckpointsOption = None,
    search: options.SearchOption = None,
    k: options.KOption = None,
    length_penalty: options.LengthPenaltyOption = None,
    coverage_penalty: options.CoveragePenaltyOption = None,
    max_length: options.MaxLengthOption = None,
    min_length: options.MinLengthOption = None,
    no_repeat_ngram: options.NoRepeatNgramOption = None,
    banned: options.BannedOption = None,
    temperature: options.TemperatureOption = None,
    top_k: options.TopKOption = None,
    top_p: options.TopPOption = None,
    seed: options.SeedOption = None,
    stop_when: options.StopWhenOption = None,
    max_nodes: options.MaxNodesOption = None,
    metrics: Annotated[str, typer.Option(help="bleu, chrf, ter, bleu-d2l, separated by commas.")] = "bleu,chrf",
    device: options.DeviceOption = "auto",
    precision: options.PrecisionOption = "auto",
    as_json: options.JsonOption = False,
) -> None:
    """Score translations, or a model on a test set; prints each metric with the signature to repeat it."""
    from model.bleu import METRICS
    from model.bleu import score as score_texts

    names = tuple(name.strip() for name in metrics.split(","))
    for name in names:
        if name not in METRICS:
            raise InvalidValue("--metrics", name, "any of " + ", ".join(METRICS))
    search_fields = options.given(
        search=search,
        k=k,
        length_penalty=length_penalty,
        coverage_penalty=coverage_penalty,
        max_length=max_length,
        min_length=min_length,
        no_repeat_ngram=no_repeat_ngram,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        stop_when=stop_when,
        max_nodes=max_nodes,
    )
    paths = files or []
    if sources is None:
        for name, value in options.given(model=model or None, banned=banned, **search_fields).items():
            raise InvalidValue(_flag(name), value, "given together with --sources, which it translates")
        if len(paths) < 2:
            raise InvalidValue("files", [str(path) for path in paths], "HYP and at least one REF, or --sources")
        hypotheses = read_lines(paths[0])
        references = aligned(paths[1:], len(hypotheses), paths[0])
    else:
        from model.translator import Translator, search_options

        options.check_banned(banned)
        search_options(**search_fields)  # a wrong option is refused before a model is loaded
        translator = Translator.load(options.model_folder(model, checkpoints), device=device, precision=precision)
        texts, references = _test_set(sources, paths, translator.src_lang, translator.tgt_lang)
        found = translator.translate(texts, banned=banned or (), **search_fields)
        hypotheses = [translation.text for translation in found]
    scores = score_texts(hypotheses, references, metrics=names, sentence_scores=False)
    if as_json:
        typer.echo(json.dumps({name: result.to_json() for name, result in scores.items()}))
        return
    for name, result in scores.items():
        typer.echo(f"{name:9s} {result.score:7.2f}   {result.signature}")


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def aligned(paths: list[Path], num_lines: int, first: Path) -> list[list[str]]:
    """For each sentence its line of every file."""
    columns = [read_lines(path) for path in paths]
    for path, lines in zip(paths, columns, strict=True):
        if len(lines) != num_lines:
            raise DataError(f"has {len(lines):,} lines, {first} has {num_lines:,}: they are not aligned", path)
    return [list(refs) for refs in zip(*columns, strict=True)]


def _test_set(sources: Path, paths: list[Path], src_lang: str, tgt_lang: str) -> tuple[list[str], list[list[str]]]:
    if paths:
        texts = read_lines(sources)
        return texts, aligned(paths, len(texts), sources)
    from model.data.corpus import read_examples

    examples = read_examples(sources, src_lang=src_lang, tgt_lang=tgt_lang)
    return [example.src for example in examples], [list(example.refs) for example in examples]
