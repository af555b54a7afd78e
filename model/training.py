"""Training: epochs over parallel text with validation, checkpoints, early stopping, averaging, and a faithful resume.

A run lives in a folder of its own:

    run.json                the options, the languages, the data's hash: what a resume must find unchanged
    tokenizer.*             learnt once
    state.safetensors/.json weights, optimizer, random state and position after the last checkpoint
    epoch-NNN.safetensors   the weights of the best evaluations, to be averaged
    log.jsonl               a line an evaluation

Everything that is random comes from the seed and the epoch number, or from the saved generator state: a run that was
stopped and resumed goes the way it would have gone. Knows nothing of jobs, HTTP or terminals; `on_progress` hears how
it goes and `should_stop` ends it after the step at hand.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save
from torch import Tensor, nn

from model.bleu import corpus_bleu
from model.checkpoint import Checkpoint, save_checkpoint
from model.config import Preset, TrainingConfig
from model.data.batching import Batch, bucketed_batches, collate
from model.data.corpus import Example, Pair
from model.data.tokenizer import Tokenizer, load_tokenizer, seed_sampling, train_tokenizer
from model.data.vocab import BOS_ID
from model.errors import Cancelled, TrainingError
from model.files import write_atomically, write_json
from model.network.dropout import Dropouts
from model.network.seq2seq import Seq2Seq
from model.translator import Translator

STATE_VERSION = 1
_CLEARLY_FASTER = 1.5
_EVAL_BATCH_TOKENS = 4096


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a run stands.

    Attributes:
        epoch: from 1; step: updates so far; total_steps: planned.
        loss: mean label-smoothed cross-entropy a target token since the last report, in nats.
        tokens_per_second: target tokens trained on a second, since the last report.
        seconds: time spent training, resumes included.
        seconds_left: estimate to the planned end.
        dev_loss, dev_bleu: of the last evaluation, None before the first.
        is_evaluation: this report closes an evaluation.
    """

    epoch: int
    step: int
    total_steps: int
    loss: float
    learning_rate: float
    tokens_per_second: float
    seconds: float
    seconds_left: float
    dev_loss: float | None = None
    dev_bleu: float | None = None
    is_evaluation: bool = False


def masked_cross_entropy(logits: Tensor, label_ids: Tensor, lens: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy over valid positions: the course's masked loss.

    Args:
        logits: [B, T, V] float.
        label_ids: [B, T] int64.
        lens: [B] int64, valid lengths.
    """
    mask = torch.arange(label_ids.shape[1], device=lens.device) < lens[:, None]
    return F.cross_entropy(logits[mask].float(), label_ids[mask], label_smoothing=label_smoothing)


def batch_loss(network: Seq2Seq, batch: Batch, label_smoothing: float = 0.0) -> Tensor:
    """`masked_cross_entropy` of a batch; the output layer sees valid positions only."""
    mask = torch.arange(batch.tgt_ids.shape[1], device=batch.tgt_lens.device) < batch.tgt_lens[:, None]
    bos = batch.tgt_ids.new_full((len(batch), 1), BOS_ID)
    readouts = network.readouts(batch.src_ids, batch.src_lens, torch.cat((bos, batch.tgt_ids[:, :-1]), dim=1))
    logits = network.decoder.output(readouts[mask]).float()
    return F.cross_entropy(logits, batch.tgt_ids[mask], label_smoothing=label_smoothing)


def _precision(preset: Preset, device: str) -> str:
    """What the run's matrix products are made in; `auto` is measured, on a product of the model's own size.

    bf16 has to win clearly: the products are half of a step's time, and casting costs some.
    """
    if preset.training.precision != "auto":
        return preset.training.precision
    if device == "cuda":
        return "bf16"
    dim = preset.model.decoder_dim
    x, weight = torch.randn(max(16, preset.training.batch_tokens // 16), dim), torch.randn(4 * dim, dim)
    seconds: dict[torch.dtype, float] = {torch.float32: math.inf, torch.bfloat16: math.inf}
    for _ in range(7):
        for dtype in seconds:
            cast_x, cast_weight = x.to(dtype), weight.to(dtype)
            started = time.perf_counter()
            F.linear(cast_x, cast_weight)
            seconds[dtype] = min(seconds[dtype], time.perf_counter() - started)
    return "bf16" if seconds[torch.float32] > _CLEARLY_FASTER * seconds[torch.bfloat16] else "fp32"


def learning_rate(config: TrainingConfig, step: int, total_steps: int) -> float:
    """The schedule's value for update `step` (from 0)."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.learning_rate
    if config.schedule == "inverse_sqrt":
        return config.learning_rate * math.sqrt(max(config.warmup_steps, 1) / (step + 1))
    share = min(1.0, (step - config.warmup_steps) / max(1, total_steps - config.warmup_steps))
    floor = config.final_learning_rate
    return config.learning_rate * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * share)))


def average_weights(states: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of several checkpoints' weights, name by name."""
    return {name: torch.stack([s[name].float() for s in states]).mean(dim=0) for name in states[0]}


def data_hash(pairs: Sequence[Pair]) -> str:
    """sha256 over the pairs in their order."""
    digest = hashlib.sha256()
    for pair in pairs:
        digest.update(f"{pair.src}\t{pair.tgt}\n".encode())
    return digest.hexdigest()


class Trainer:
    """One training run in one folder.

    Args:
        folder: the run's folder; made where it is missing.
        preset: architecture, tokenizer and training options.
        pairs: the cleaned training text.
        dev: dev sentences with their references.
        resume: go on from the folder's last checkpoint; without it a folder that holds a run is refused.
        start_from: a trained model whose weights, tokenizer and shape this run begins with (fine-tuning); the preset
            gives the training options only.

    Raises:
        TrainingError: too little data, a run is in the way, or none is there to resume, or it is another one.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        preset: Preset,
        pairs: Sequence[Pair],
        dev: Sequence[Example],
        src_lang: str,
        tgt_lang: str,
        resume: bool = False,
        start_from: Checkpoint | None = None,
        device: str = "auto",
    ) -> None:
        if len(pairs) < 2 or not dev:
            raise TrainingError(
                f"{len(pairs)} training pairs and {len(dev)} dev sentences; at least 2 and 1 are needed"
            )
        self.folder = Path(folder)
        self.config = preset.training
        self.dev = list(dev[: self.config.eval_sentences] if self.config.eval_sentences else dev)
        self.src_lang, self.tgt_lang = src_lang, tgt_lang
        self.device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        self.parent = start_from.version if start_from else None
        if start_from:
            preset = replace(preset, model=start_from.model)
        self._open_folder(preset, pairs, resume)
        if start_from:
            self.src_tokenizer, self.tgt_tokenizer = start_from.src_tokenizer, start_from.tgt_tokenizer
        else:
            self.src_tokenizer, self.tgt_tokenizer = self._tokenizers(preset, pairs)
        self.model_config = replace(
            preset.model,
            src_vocab_size=self.src_tokenizer.vocab_size,
            tgt_vocab_size=self.tgt_tokenizer.vocab_size,
        )
        self._set_texts(pairs)
        torch.manual_seed(self.config.seed)
        drop = Dropouts(
            embedding=self.config.embedding_dropout,
            layer=self.config.dropout,
            recurrent=self.config.recurrent_dropout,
            readout=self.config.readout_dropout,
            variational=self.config.variational,
        )
        self.network = Seq2Seq(self.model_config, drop).to(self.device)
        if start_from:
            self.network.load_state_dict(start_from.weights)
        decayed = [p for p in self.network.parameters() if p.dim() > 1]
        plain = [p for p in self.network.parameters() if p.dim() <= 1]
        self.optimizer = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": self.config.weight_decay}, {"params": plain, "weight_decay": 0.0}],
            lr=self.config.learning_rate,
            betas=(0.9, self.config.beta2),
            fused=True,
        )
        self.epoch, self.batch_index, self.step = 0, 0, 0
        self.seconds = 0.0
        self.evaluations: list[dict[str, Any]] = []
        self._random_state = torch.get_rng_state()  # taken up when training starts, whatever was drawn meanwhile
        if resume:
            self._load_state()

    # -- what the run works on -------------------------------------------------------------------------------------

    def _open_folder(self, preset: Preset, pairs: Sequence[Pair], resume: bool) -> None:
        self.run = {
            "format_version": STATE_VERSION,
            "src_lang": self.src_lang,
            "tgt_lang": self.tgt_lang,
            "model": preset.model.to_json(),
            "tokenizer": preset.tokenizer.to_json(),
            "training": preset.training.to_json(),
            "num_pairs": len(pairs),
            "data_sha256": data_hash(pairs),
            "parent": self.parent,
        }
        path = self.folder / "run.json"
        if not resume:
            if path.exists():
                raise TrainingError(f"{self.folder} holds a run already: resume it, or choose another folder")
            self.folder.mkdir(parents=True, exist_ok=True)
            self.precision = _precision(preset, self.device)
            write_json(path, {**self.run, "precision": self.precision})
            return
        try:
            found = json.loads(path.read_bytes())
        except (OSError, ValueError) as exc:
            raise TrainingError(f"{self.folder} holds no run to resume") from exc
        for key, value in self.run.items():
            if found.get(key) != value:
                raise TrainingError(f"{self.folder} holds another run: its {key} is not the same")
        self.precision = str(found.get("precision", "fp32"))  # measured once: another choice would be another run

    def _tokenizers(self, preset: Preset, pairs: Sequence[Pair]) -> tuple[Tokenizer, Tokenizer]:
        if preset.tokenizer.shared:
            shared = self._tokenizer("", preset, [text for pair in pairs for text in pair])
            return shared, shared
        return (
            self._tokenizer("source.", preset, [pair.src for pair in pairs]),
            self._tokenizer("target.", preset, [pair.tgt for pair in pairs]),
        )

    def _tokenizer(self, prefix: str, preset: Preset, texts: Sequence[str]) -> Tokenizer:
        options = preset.tokenizer
        for path in self.folder.glob(f"{prefix}tokenizer.*"):
            return load_tokenizer(path)
        tokenizer = train_tokenizer(
            options.kind,
            texts,
            vocab_size=options.vocab_size,
            min_freq=options.min_frequency,
            model_type=options.model_type,
        )
        tokenizer.save(self.folder / (prefix + tokenizer.file_name))
        return tokenizer

    def _set_texts(self, pairs: Sequence[Pair]) -> None:
        src = self.src_tokenizer.encode_batch([pair.src for pair in pairs])
        tgt = self.tgt_tokenizer.encode_batch([pair.tgt for pair in pairs])
        kept = [
            i
            for i in range(len(pairs))
            if 0 < len(src[i]) < self.config.max_src_tokens and 0 < len(tgt[i]) < self.config.max_tgt_tokens
        ]
        self.num_too_long = len(pairs) - len(kept)
        if len(kept) < 2:
            raise TrainingError(f"{len(kept)} pairs are left within max_src_tokens and max_tgt_tokens; 2 are needed")
        self.pairs = [pairs[i] for i in kept]
        self.src_ids, self.tgt_ids = [src[i] for i in kept], [tgt[i] for i in kept]
        self.steps_per_epoch = len(self._batches(0))
        self.total_steps = self.steps_per_epoch * self.config.max_epochs
        if self.config.max_steps:
            self.total_steps = min(self.total_steps, self.config.max_steps)

    def _batches(self, epoch: int) -> list[list[int]]:
        return bucketed_batches(
            [len(ids) + 1 for ids in self.src_ids],
            [len(ids) + 1 for ids in self.tgt_ids],
            max_tokens=self.config.batch_tokens,
            seed=self.config.seed,
            epoch=epoch,
        )

    def _epoch_ids(self, epoch: int) -> tuple[list[list[int]], list[list[int]]]:
        """The epoch's token ids: cut anew each time where sub-words are sampled, the same again on a resume."""
        if not self.config.subword_sampling:
            return self.src_ids, self.tgt_ids
        seed_sampling((self.config.seed * 1000 + epoch) % 2**32)
        alpha = self.config.subword_sampling
        return (
            self.src_tokenizer.encode_batch([pair.src for pair in self.pairs], sampling_alpha=alpha),
            self.tgt_tokenizer.encode_batch([pair.tgt for pair in self.pairs], sampling_alpha=alpha),
        )

    # -- the run ---------------------------------------------------------------------------------------------------

    def train(
        self,
        *,
        on_progress: Callable[[Progress], None] = lambda progress: None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """Trains to the end of the plan, or until patience, time or `should_stop` ends it.

        Raises:
            Cancelled: `should_stop` said so; the state is saved and can be resumed.
            TrainingError: the loss is no number any more.
        """
        torch.set_rng_state(self._random_state)
        while self.epoch < self.config.max_epochs and self.step < self.total_steps and not self._is_finished():
            self._train_epoch(on_progress, should_stop)
            self.epoch, self.batch_index = self.epoch + 1, 0
            if self.epoch % self.config.eval_every_epochs == 0 or self.step >= self.total_steps:
                self._evaluate(on_progress)
            self._save_state()

    def _is_finished(self) -> bool:
        if self.config.max_minutes and self.seconds >= 60 * self.config.max_minutes:
            return True
        if not self.config.patience or not self.evaluations:
            return False
        best = max(range(len(self.evaluations)), key=lambda i: self.evaluations[i]["dev_bleu"])
        return len(self.evaluations) - 1 - best >= self.config.patience

    def _train_epoch(self, on_progress: Callable[[Progress], None], should_stop: Callable[[], bool]) -> None:
        batches = self._batches(self.epoch)
        src_ids, tgt_ids = self._epoch_ids(self.epoch)
        self.network.train()
        loss_sum, num_tokens = torch.zeros((), device=self.device), 0
        last_report = last_save = last = time.monotonic()
        for index in range(self.batch_index, len(batches)):
            if self.step >= self.total_steps or self._is_out_of_time():
                break
            batch = collate([src_ids[i] for i in batches[index]], [tgt_ids[i] for i in batches[index]])
            loss_sum += self._update(batch.to(self.device)) * batch.num_tgt_tokens
            num_tokens += batch.num_tgt_tokens
            self.batch_index = index + 1
            now = time.monotonic()
            self.seconds += now - last
            last = now
            if now - last_report >= self.config.log_every_seconds:
                on_progress(self._progress(float(loss_sum) / num_tokens, num_tokens / (now - last_report)))
                loss_sum.zero_()
                num_tokens, last_report = 0, now
            stopped = should_stop()
            if stopped or now - last_save >= 60 * self.config.checkpoint_minutes:
                self._save_state()
                last_save = last = time.monotonic()
            if stopped:
                raise Cancelled("training was asked to stop; its state is saved")

    def _is_out_of_time(self) -> bool:
        return bool(self.config.max_minutes) and self.seconds >= 60 * self.config.max_minutes

    def _update(self, batch: Batch) -> Tensor:
        rate = learning_rate(self.config, self.step, self.total_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        is_bf16 = self.precision == "bf16"
        with torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=is_bf16):
            loss = batch_loss(self.network, batch, self.config.label_smoothing)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), self.config.clip_norm or math.inf)
        if not torch.isfinite(norm):
            raise TrainingError(
                f"the gradient is no number at step {self.step}: lower learning_rate ({self.config.learning_rate:g}) "
                "or clip_norm, and resume from the last checkpoint"
            )
        self.optimizer.step()
        self.step += 1
        return loss.detach()

    def _progress(self, loss: float, tokens_per_second: float, **evaluation: Any) -> Progress:
        last = self.evaluations[-1] if self.evaluations else {}
        left = self.seconds / max(1, self.step) * (self.total_steps - self.step)
        if self.config.max_minutes:
            left = min(left, 60 * self.config.max_minutes - self.seconds)
        return Progress(
            epoch=min(self.epoch + 1, self.config.max_epochs),
            step=self.step,
            total_steps=self.total_steps,
            loss=loss,
            learning_rate=learning_rate(self.config, max(0, self.step - 1), self.total_steps),
            tokens_per_second=tokens_per_second,
            seconds=self.seconds,
            seconds_left=max(0.0, left),
            dev_loss=last.get("dev_loss"),
            dev_bleu=last.get("dev_bleu"),
            is_evaluation=bool(evaluation),
        )

    # -- evaluation ------------------------------------------------------------------------------------------------

    def checkpoint(self, weights: dict[str, Tensor], metrics: dict[str, Any]) -> Checkpoint:
        """These weights as a checkpoint of this run."""
        return Checkpoint(
            model=self.model_config,
            weights=weights,
            src_tokenizer=self.src_tokenizer,
            tgt_tokenizer=self.tgt_tokenizer,
            src_lang=self.src_lang,
            tgt_lang=self.tgt_lang,
            metrics=metrics,
        )

    @torch.inference_mode()
    def dev_loss(self) -> float:
        """Mean cross-entropy a target token on the dev set's first references, without smoothing, in nats."""
        self.network.eval()
        src = self.src_tokenizer.encode_batch([example.src for example in self.dev])
        tgt = self.tgt_tokenizer.encode_batch([example.refs[0] for example in self.dev])
        batches = bucketed_batches(
            [len(ids) + 1 for ids in src], [len(ids) + 1 for ids in tgt], max_tokens=_EVAL_BATCH_TOKENS, seed=0, epoch=0
        )
        total, num_tokens = 0.0, 0
        for chosen in batches:
            batch = collate([src[i] for i in chosen], [tgt[i] for i in chosen]).to(self.device)
            total += float(batch_loss(self.network, batch)) * batch.num_tgt_tokens
            num_tokens += batch.num_tgt_tokens
        return total / num_tokens

    def _weights(self) -> dict[str, Tensor]:
        return {name: tensor.detach().cpu() for name, tensor in self.network.state_dict().items()}

    def _evaluate(self, on_progress: Callable[[Progress], None]) -> None:
        started = time.monotonic()
        loss = self.dev_loss()
        translator = Translator(self.checkpoint(self._weights(), {}), device=self.device, precision="fp32")
        bleu = dev_bleu(translator, self.dev, k=1)
        self.seconds += time.monotonic() - started
        entry = {"epoch": self.epoch, "step": self.step, "dev_loss": loss, "dev_bleu": bleu, "seconds": self.seconds}
        self.evaluations.append(entry)
        self._keep_best()
        with (self.folder / "log.jsonl").open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(entry) + "\n")
        on_progress(self._progress(loss, 0.0, evaluation=True))

    def _best_epochs(self) -> list[int]:
        ranked = sorted(self.evaluations, key=lambda e: (-e["dev_bleu"], e["epoch"]))
        return [entry["epoch"] for entry in ranked[: self.config.average_checkpoints]]

    def _epoch_path(self, epoch: int) -> Path:
        return self.folder / f"epoch-{epoch:03d}.safetensors"

    def _keep_best(self) -> None:
        best = self._best_epochs()
        if self.epoch in best:
            write_atomically(self._epoch_path(self.epoch), save(_unshared(self.network)))
        for entry in self.evaluations:
            if entry["epoch"] not in best:
                self._epoch_path(entry["epoch"]).unlink(missing_ok=True)

    def finish(self, out: str | Path, metrics: dict[str, Any]) -> Translator:
        """Averages the best checkpoints and saves the mean, or the best one where that has the higher dev BLEU.

        `metrics` is added to what the run knows of itself.
        """
        if not self.evaluations:
            raise TrainingError("the run ended before its first evaluation; give it more time")
        best = self._best_epochs()
        states = [load_file(self._epoch_path(epoch)) for epoch in best]
        candidates = {f"epoch {best[0]}": states[0]}
        if len(states) > 1:
            candidates[f"mean of epochs {', '.join(map(str, sorted(best)))}"] = average_weights(states)
        scored = []
        for name, weights in candidates.items():
            self.network.load_state_dict(weights, strict=False)
            checkpoint = self.checkpoint(self._weights(), {})
            translator = Translator(checkpoint, device=self.device, precision="fp32")
            scored.append((dev_bleu(translator, self.dev, k=1), name, checkpoint))
        bleu, name, checkpoint = max(scored, key=lambda entry: entry[0])
        known = {
            "weights": name,
            "dev_bleu_greedy": round(bleu, 2),
            "num_parameters": self.network.num_parameters,
            "epochs": self.epoch,
            "steps": self.step,
            "training_minutes": round(self.seconds / 60, 1),
            "parent": self.parent,
            "seed": self.config.seed,
            "precision": self.precision,
            "data_sha256": self.run["data_sha256"],
            "num_pairs": len(self.pairs),
            "tokenizer": self.run["tokenizer"],
            "training": self.config.to_json(),
            "evaluations": self.evaluations,
        }
        save_checkpoint(replace(checkpoint, metrics={**metrics, **known}), out)
        return Translator.load(out, device=self.device)

    # -- state -----------------------------------------------------------------------------------------------------

    def _save_state(self) -> None:
        tensors = {f"weights.{name}": tensor for name, tensor in _unshared(self.network).items()}
        for index, entry in self.optimizer.state_dict()["state"].items():
            tensors.update({f"optimizer.{index}.{key}": value.clone() for key, value in entry.items()})
        tensors["random"] = torch.get_rng_state()
        if self.device == "cuda":
            tensors["random_cuda"] = torch.cuda.get_rng_state()
        values = {
            "epoch": self.epoch,
            "batch_index": self.batch_index,
            "step": self.step,
            "seconds": self.seconds,
            "evaluations": self.evaluations,
        }
        # One file: tensors and position must never be of two moments.
        write_atomically(self.folder / "state.safetensors", save(tensors, metadata={"state": json.dumps(values)}))

    def _load_state(self) -> None:
        from safetensors import safe_open

        path = self.folder / "state.safetensors"
        if not path.exists():
            return  # stopped before its first checkpoint: it starts again
        with safe_open(path, framework="pt") as stream:
            values = json.loads(stream.metadata()["state"])
        tensors = load_file(path)
        weights = {k.removeprefix("weights."): v for k, v in tensors.items() if k.startswith("weights.")}
        self.network.load_state_dict(weights, strict=False)
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            if key.startswith("optimizer."):
                _, index, name = key.split(".", 2)
                state.setdefault(int(index), {})[name] = value
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})
        self._random_state = tensors["random"]
        if self.device == "cuda":
            torch.cuda.set_rng_state(tensors["random_cuda"])
        self.epoch, self.batch_index, self.step = values["epoch"], values["batch_index"], values["step"]
        self.seconds, self.evaluations = values["seconds"], values["evaluations"]


def _unshared(network: nn.Module) -> dict[str, Tensor]:
    """Each parameter once, on the CPU, under the first of its names."""
    return {name: p.detach().cpu().contiguous().clone() for name, p in network.named_parameters()}


def dev_bleu(translator: Translator, examples: Sequence[Example], *, k: int) -> float:
    """sacreBLEU of the translations of `examples` against all their references."""
    translations = translator.translate([example.src for example in examples], k=k)
    return corpus_bleu([t.text for t in translations], [list(example.refs) for example in examples])
