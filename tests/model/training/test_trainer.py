"""Training: it learns, it repeats itself, and a run that was stopped ends where one that was not does."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from model.checkpoint import load_checkpoint
from model.config import Preset
from model.data.batching import collate
from model.data.corpus import Example, Pair
from model.errors import Cancelled, InvalidValue, TrainingError
from model.network.seq2seq import Seq2Seq
from model.training import Progress, Trainer, average_weights, batch_loss, learning_rate, masked_cross_entropy


def trainer(
    folder: Path, preset: Preset, pairs: list[Pair], dev: list[Example], *, resume: bool | None = False
) -> Trainer:
    return Trainer(folder, preset=preset, pairs=pairs, dev=dev, src_lang="en", tgt_lang="fr", resume=resume)


def weights_of(run: Trainer) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in run.network.state_dict().items()}


def is_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_loss_falls_and_progress_is_told(
    tmp_path: Path, tiny_preset: Preset, pairs: list[Pair], dev: list[Example]
) -> None:
    heard: list[Progress] = []
    run = trainer(tmp_path, tiny_preset.with_options({"log_every_seconds": 0.01}), pairs, dev)
    run.train(on_progress=heard.append)
    assert heard[-1].is_evaluation
    assert heard[-1].step == run.total_steps
    losses = [p.loss for p in heard if not p.is_evaluation]
    assert losses[-1] < losses[0] - 0.5
    assert [json.loads(line)["epoch"] for line in (tmp_path / "log.jsonl").read_text().splitlines()] == [1, 2, 3]


def test_same_seed_gives_same_weights_and_another_seed_others(
    tmp_path: Path, tiny_preset: Preset, pairs: list[Pair], dev: list[Example]
) -> None:
    short = tiny_preset.with_options({"max_steps": 4})
    runs = [trainer(tmp_path / name, short, pairs, dev) for name in "ab"]
    other = trainer(tmp_path / "c", short.with_options({"seed": 2}), pairs, dev)
    for run in (*runs, other):
        run.train()
    assert is_same(weights_of(runs[0]), weights_of(runs[1]))
    assert not is_same(weights_of(runs[0]), weights_of(other))


@pytest.mark.parametrize("stop_at", [1, 7, 13])
@pytest.mark.parametrize("sampling", [0.0, 0.2])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(
    tmp_path: Path, tiny_preset: Preset, pairs: list[Pair], dev: list[Example], stop_at: int, sampling: float
) -> None:
    preset = tiny_preset.with_options({"subword_sampling": sampling, "max_epochs": 2})
    whole = trainer(tmp_path / "whole", preset, pairs, dev)
    whole.train()
    stopped = trainer(tmp_path / "stopped", preset, pairs, dev)
    with pytest.raises(Cancelled):
        stopped.train(should_stop=lambda: stopped.step >= stop_at)
    torch.manual_seed(99)  # another process would have another random state
    resumed = trainer(tmp_path / "stopped", preset, pairs, dev, resume=True)
    assert resumed.step == stop_at
    resumed.train()
    assert is_same(weights_of(whole), weights_of(resumed))


def test_a_run_in_the_way_is_not_overwritten(
    tmp_path: Path, tiny_preset: Preset, pairs: list[Pair], dev: list[Example]
) -> None:
    trainer(tmp_path, tiny_preset, pairs, dev)
    with pytest.raises(TrainingError, match="holds a run already"):
        trainer(tmp_path, tiny_preset, pairs, dev)


def test_resume_refuses_other_data_and_other_options(
    tmp_path: Path, tiny_preset: Preset, pairs: list[Pair], dev: list[Example]
) -> None:
    trainer(tmp_path, tiny_preset, pairs, dev)
    with pytest.raises(TrainingError, match="num_pairs"):
        trainer(tmp_path, tiny_preset, pairs[:-1], dev, resume=True)
    with pytest.raises(TrainingError, match="dropout"):
        trainer(tmp_path, tiny_preset.with_options({"dropout": 0.5}), pairs, dev, resume=True)
    with pytest.raises(TrainingError, match="dev_sha256"):
        trainer(tmp_path, tiny_preset, pairs, dev[1:], resume=True)
    with pytest.raises(TrainingError, match="no run to resume"):
        trainer(tmp_path / "nothing", tiny_preset, pairs, dev, resume=True)


def test_a_resume_may_bring_another_time_limit_and_goes_on(
    tmp_path: Path, tiny_preset: Preset, pairs: list[Pair], dev: list[Example]
) -> None:
    whole = trainer(tmp_path / "whole", tiny_preset, pairs, dev)
    whole.train()
    short = trainer(tmp_path / "short", tiny_preset.with_options({"max_minutes": 1e-9}), pairs, dev)
    short.train()
    assert short.step == 1
    assert [entry["step"] for entry in short.evaluations] == [1]
    longer = trainer(tmp_path / "short", tiny_preset, pairs, dev, resume=True)
    longer.train()
    assert is_same(weights_of(whole), weights_of(longer))


def test_resume_none_begins_a_run_or_goes_on(
    tmp_path: Path, tiny_preset: Preset, pairs: list[Pair], dev: list[Example]
) -> None:
    first = trainer(tmp_path, tiny_preset, pairs, dev, resume=None)
    with pytest.raises(Cancelled):
        first.train(should_stop=lambda: first.step >= 2)
    assert trainer(tmp_path, tiny_preset, pairs, dev, resume=None).step == 2


def test_a_resume_takes_the_threads_and_the_precision_that_the_run_began_with(
    tmp_path: Path, tiny_preset: Preset, pairs: list[Pair], dev: list[Example]
) -> None:
    num_threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        trainer(tmp_path, tiny_preset.with_options({"precision": "bf16"}), pairs, dev)
        torch.set_num_threads(1)
        resumed = trainer(tmp_path, tiny_preset.with_options({"precision": "bf16"}), pairs, dev, resume=True)
        assert torch.get_num_threads() == 2
        assert resumed.precision == "bf16"
    finally:
        torch.set_num_threads(num_threads)


def test_weights_of_evaluations_that_are_no_longer_among_the_best_are_deleted(
    tmp_path: Path, tiny_preset: Preset, pairs: list[Pair], dev: list[Example]
) -> None:
    run = trainer(tmp_path, tiny_preset.with_options({"average_checkpoints": 1}), pairs, dev)
    run.train()
    assert len(run.evaluations) == 3
    assert len(list(tmp_path.glob("step-*.safetensors"))) == 1


def test_what_a_killed_process_was_writing_is_removed(
    tmp_path: Path, tiny_preset: Preset, pairs: list[Pair], dev: list[Example]
) -> None:
    trainer(tmp_path, tiny_preset, pairs, dev)
    (tmp_path / ".state.safetensors.x1y2").write_bytes(b"half")
    trainer(tmp_path, tiny_preset, pairs, dev, resume=True)
    assert not list(tmp_path.glob(".state*"))


def test_finish_saves_the_weights_whose_score_it_reports(
    tmp_path: Path, tiny_preset: Preset, pairs: list[Pair], dev: list[Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trainer(tmp_path / "run", tiny_preset, pairs, dev)
    run.train()
    best = run._run_folder.load_weights(run._best_steps()[0])
    scores = iter([2.0, 1.0])  # the best single checkpoint beats the mean
    monkeypatch.setattr(run, "_bleu", lambda checkpoint: next(scores))
    assert "mean" not in run.finish(tmp_path / "en-fr", {}).metadata["weights"]
    saved = load_checkpoint(tmp_path / "en-fr").weights
    assert all(torch.equal(saved[name], tensor) for name, tensor in best.items())


def test_patience_ends_a_run_that_does_not_get_better(
    tmp_path: Path, tiny_preset: Preset, pairs: list[Pair], dev: list[Example]
) -> None:
    still = tiny_preset.with_options({"learning_rate": 1e-8, "max_epochs": 20, "patience": 2})
    run = trainer(tmp_path, still, pairs, dev)
    run.train()
    assert len(run.evaluations) == 3


def test_finish_writes_a_checkpoint_that_translates(
    tmp_path: Path, tiny_preset: Preset, pairs: list[Pair], dev: list[Example]
) -> None:
    run = trainer(tmp_path / "run", tiny_preset, pairs, dev)
    run.train()
    translator = run.finish(tmp_path / "en-fr", {"data": "tiny"})
    assert translator.metadata["data"] == "tiny"
    assert translator.metadata["steps"] == run.total_steps
    assert translator.translate("Hello.", k=2).text


def test_too_little_data_is_refused(tmp_path: Path, tiny_preset: Preset, pairs: list[Pair], dev: list[Example]) -> None:
    with pytest.raises(TrainingError, match="at least 2"):
        trainer(tmp_path, tiny_preset, pairs[:1], dev)


def test_an_unknown_option_is_refused_by_name(tiny_preset: Preset) -> None:
    with pytest.raises(InvalidValue) as caught:
        tiny_preset.with_options({"learning_rat": 1})
    assert caught.value.field == "learning_rat"


def test_masked_loss_ignores_padding_and_equals_the_loss_over_valid_positions() -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(3, 5, 7, generator=generator)
    labels = torch.randint(0, 7, (3, 5), generator=generator)
    lens = torch.tensor([5, 2, 3])
    expected = -torch.cat(
        [logits[i, :n].log_softmax(-1).gather(1, labels[i, :n, None]) for i, n in enumerate(lens.tolist())]
    ).mean()
    assert masked_cross_entropy(logits, labels, lens) == pytest.approx(float(expected), abs=1e-6)
    logits[1, 2:] = 1e4
    labels[2, 3:] = 6
    assert masked_cross_entropy(logits, labels, lens) == pytest.approx(float(expected), abs=1e-6)


def test_batch_loss_equals_the_masked_loss_of_teacher_forced_logits(tiny_preset: Preset) -> None:
    torch.manual_seed(0)
    network = Seq2Seq(replace(tiny_preset.model, src_vocab_size=30, tgt_vocab_size=30)).eval()
    batch = collate([[5, 6, 7], [8]], [[9, 10], [11, 12, 13, 14]])
    bos = torch.full((2, 1), 2)
    logits = network(batch.src_ids, batch.src_lens, torch.cat((bos, batch.tgt_ids[:, :-1]), dim=1))
    expected = masked_cross_entropy(logits, batch.tgt_ids, batch.tgt_lens, 0.1)
    assert batch_loss(network, batch, 0.1).item() == pytest.approx(expected.item(), abs=1e-5)


def test_schedule_rises_then_falls_to_its_floor(tiny_preset: Preset) -> None:
    config = tiny_preset.with_options({"warmup_steps": 10, "learning_rate": 1.0, "final_learning_rate": 0.1}).training
    rates = [learning_rate(config, step, 100) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * i for i in range(1, 11)])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert learning_rate(config, 100, 100) == pytest.approx(0.1)


def test_average_of_weights_is_their_mean() -> None:
    first, second = {"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([3.0, 6.0])}
    assert torch.equal(average_weights([first, second])["w"], torch.tensor([2.0, 4.0]))


def test_a_run_may_start_from_a_trained_model(
    tmp_path: Path, tiny_checkpoint: Path, tiny_preset: Preset, pairs: list[Pair], dev: list[Example]
) -> None:
    parent = load_checkpoint(tiny_checkpoint)
    run = Trainer(
        tmp_path / "run", preset=tiny_preset, pairs=pairs, dev=dev, src_lang="en", tgt_lang="fr", start_from=parent
    )
    assert is_same(weights_of(run), parent.weights)
    with pytest.raises(Cancelled):
        run.train(should_stop=lambda: run.step >= 3)
    run = trainer(tmp_path / "run", tiny_preset, pairs, dev, resume=True)  # needs the parent no more
    assert run.step == 3
    run.train()
    assert run.finish(tmp_path / "en-fr", {}).metadata["parent"] == parent.version
