"""One training run: epochs, evaluations, checkpoints, patience, limits, and a resume that is exact.

A run that is killed at any moment and resumed ends with the weights, byte for byte, that it would have had. That holds
because nothing random has a memory: weights, data order, the cutting into sub-words and dropout are each seeded anew
from the run's seed and the epoch or step at hand; and because what else decides a sum's last bit is kept in run.json
and taken up again: precision, threads, number of processes. It takes the same torch on the same kind of processor.
`max_minutes` is the exception: a clock decides after which step it ends the run, not what the steps do; time that was
spent after the last checkpoint of a killed process is not counted.

On several processes (`torchrun`) every step is one step over the whole global batch, of `batch_tokens` for each
process: each takes its rows of it (`corpus.share`), and its gradient is that of its tokens' summed loss over the number
of tokens of all, so that the sum over processes is the mean over all tokens. Rank 0 writes, evaluates and speaks; all
ranks load. Knows nothing of jobs, HTTP or terminals.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from model.checkpoint import Checkpoint, save_checkpoint
from model.config import ModelConfig, Preset, from_mapping
from model.data.batching import Batch, collate
from model.data.corpus import Example, Pair
from model.data.tokenizer import Tokenizer, train_tokenizer
from model.distributed import Group
from model.errors import Cancelled, Diverged, TrainingError
from model.network.dropout import Dropouts
from model.network.seq2seq import Seq2Seq
from model.training.corpus import TrainingCorpus, share
from model.training.evaluation import average_weights, dev_bleu, dev_loss, unshared
from model.training.failures import explained
from model.training.loss import SummedLoss
from model.training.precision import choose_precision
from model.training.progress import Meter, Progress
from model.training.run import FORMAT_VERSION, RunFolder, data_hash, examples_hash
from model.training.schedule import Updater, learning_rate
from model.translator import Translator

OnProgress = Callable[[Progress], None]
ShouldStop = Callable[[], bool]


class Trainer:
    """One training run in one folder.

    Args:
        folder: the run's folder; made where it is missing.
        preset: architecture, tokenizer and training options.
        pairs: the cleaned training text.
        dev: dev sentences with their references.
        resume: True goes on from the folder's last checkpoint and wants a run there; False begins one and refuses a
            folder that holds one; None does whichever fits, for callers that are themselves started again.
        start_from: a trained model whose weights, tokenizer and shape this run begins with (fine-tuning); the preset
            gives the training options only. A resume needs it no more.
        num_threads: CPU threads of this process's tensor operations; None leaves torch's. A resume takes the number
            that the run began with, because another one adds in another order.

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
        resume: bool | None = False,
        start_from: Checkpoint | None = None,
        device: str = "auto",
        num_threads: int | None = None,
    ) -> None:
        if len(pairs) < 2 or not dev:
            raise TrainingError(
                f"{len(pairs)} training pairs and {len(dev)} dev sentences; at least 2 and 1 are needed"
            )
        self.group = Group()
        self.folder = Path(folder)
        self.config = preset.training
        self.dev = list(dev[: self.config.eval_sentences] if self.config.eval_sentences else dev)
        self.src_lang, self.tgt_lang = src_lang, tgt_lang
        self.device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        self._run_folder = RunFolder(folder)
        if start_from:
            preset = replace(preset, model=start_from.model)
        if num_threads:
            torch.set_num_threads(num_threads)
        with explained(self.folder, self.config):
            self.src_tokenizer, self.tgt_tokenizer = self._open(preset, pairs, resume, start_from)
        self.corpus = TrainingCorpus(pairs, self.src_tokenizer, self.tgt_tokenizer, self.config, self.group.size)
        self.num_too_long = self.corpus.num_too_long
        self.steps_per_epoch = len(self.corpus.batches(0))
        self.total_steps = self.steps_per_epoch * self.config.max_epochs
        if self.config.max_steps:
            self.total_steps = min(self.total_steps, self.config.max_steps)
        self.network = self._build(start_from)
        self._objective: nn.Module = SummedLoss(self.network, self.config.label_smoothing)
        if self.group.size > 1:
            # Unused parameters are looked for only because that keeps the order in which gradients are added: after
            # its first step the wrapper would lay them out anew, and a resumed run's first step is another one.
            self._objective = DistributedDataParallel(self._objective, find_unused_parameters=True)
        self._updater = Updater(self.network, self.config)
        self._meter = Meter()
        self.epoch, self.batch_index, self.step = 0, 0, 0
        self.seconds = 0.0
        self._is_out_of_time = False
        self.evaluations: list[dict[str, Any]] = []
        self._result: tuple[float, str, dict[str, Tensor]] | None = None
        if self._run_folder.has_state:
            self._load_state()

    # -- setting up ------------------------------------------------------------------------------------------------

    def _open(
        self, preset: Preset, pairs: Sequence[Pair], resume: bool | None, parent: Checkpoint | None
    ) -> tuple[Tokenizer, Tokenizer]:
        """Rank 0 begins or checks the run and learns the tokenizers; then all read what it wrote."""
        identity = self._identity(preset, pairs, parent)
        folder = self._run_folder
        if self.group.is_main:
            with folder.locked():
                folder.remove_unfinished_files()
                if resume or (resume is None and folder.exists):
                    self._check(identity)
                else:
                    here = {"precision": choose_precision(preset, self.device), "num_threads": torch.get_num_threads()}
                    folder.begin({**identity, **here, "torch": torch.__version__, "device": self.device})
                self._learn_tokenizers(preset, pairs, parent)
        self.group.wait_for_all()
        self._check(identity)
        self.run = folder.found()
        self.precision = str(self.run.get("precision", "fp32"))  # measured once: another choice is another run
        torch.set_num_threads(int(self.run["num_threads"]))
        self.parent = self.run.get("parent")
        self._shape = from_mapping(ModelConfig, self.run["model"])
        shared = folder.tokenizer("")
        src, tgt = (shared, shared) if shared else (folder.tokenizer("source."), folder.tokenizer("target."))
        assert src is not None and tgt is not None
        return src, tgt

    def _identity(self, preset: Preset, pairs: Sequence[Pair], parent: Checkpoint | None) -> dict[str, Any]:
        return {
            "format_version": FORMAT_VERSION,
            "src_lang": self.src_lang,
            "tgt_lang": self.tgt_lang,
            "model": preset.model.to_json(),
            "tokenizer": preset.tokenizer.to_json(),
            "training": preset.training.to_json(),
            "num_pairs": len(pairs),
            "data_sha256": data_hash(pairs),
            "dev_sha256": examples_hash(self.dev),
            "parent": parent.version if parent else None,
            "num_processes": self.group.size,
        }

    def _check(self, identity: dict[str, Any]) -> None:
        found = self._run_folder.found()
        if found.get("parent") and not identity["parent"]:
            if not self._run_folder.has_state:
                raise TrainingError(f"{self.folder} began with another model and has no checkpoint: name it again")
            identity = {**identity, "model": found.get("model"), "parent": found["parent"]}
        self._run_folder.check_same(identity)

    def _learn_tokenizers(self, preset: Preset, pairs: Sequence[Pair], parent: Checkpoint | None) -> None:
        """Those that the folder lacks: from the parent, or learnt. The same text gives the same tokenizer."""
        is_shared = parent.src_tokenizer is parent.tgt_tokenizer if parent else preset.tokenizer.shared
        for prefix in ("",) if is_shared else ("source.", "target."):
            if self._run_folder.tokenizer(prefix) or (self._run_folder.has_state and not parent):
                continue
            if parent:
                tokenizer = parent.tgt_tokenizer if prefix == "target." else parent.src_tokenizer
            else:
                sides = {"": (0, 1), "source.": (0,), "target.": (1,)}[prefix]
                options = preset.tokenizer
                tokenizer = train_tokenizer(
                    options.kind,
                    [pair[side] for pair in pairs for side in sides],
                    vocab_size=options.vocab_size,
                    min_freq=options.min_frequency,
                    model_type=options.model_type,
                )
            self._run_folder.save_tokenizer(prefix, tokenizer)

    def _build(self, parent: Checkpoint | None) -> Seq2Seq:
        self.model_config = replace(
            self._shape,
            src_vocab_size=self.src_tokenizer.vocab_size,
            tgt_vocab_size=self.tgt_tokenizer.vocab_size,
        )
        torch.manual_seed(self.config.seed)
        drop = Dropouts(
            embedding=self.config.embedding_dropout,
            layer=self.config.dropout,
            recurrent=self.config.recurrent_dropout,
            readout=self.config.readout_dropout,
            variational=self.config.variational,
        )
        network = Seq2Seq(self.model_config, drop).to(self.device)
        if parent:
            network.load_state_dict(parent.weights)
        return network

    # -- the run ---------------------------------------------------------------------------------------------------

    def train(
        self,
        *,
        on_progress: OnProgress = lambda progress: None,
        should_stop: ShouldStop = lambda: False,
    ) -> None:
        """Trains to the end of the plan, or until patience, time or `should_stop` ends it.

        Args:
            on_progress: hears of the run on rank 0.
            should_stop: asked after each step, on each rank; one yes stops all.

        Raises:
            Cancelled: `should_stop` said so; the state is saved and can be resumed.
            Diverged, OutOfMemory, DiskFull: saying what can be done; the last checkpoint is whole.
            TrainingError: another process trains in this folder.
        """
        with explained(self.folder, self.config):
            if self.group.is_main:
                with self._run_folder.locked():
                    self._train(on_progress, should_stop)
            else:
                self._train(lambda progress: None, should_stop)

    def _train(self, on_progress: OnProgress, should_stop: ShouldStop) -> None:
        if self._run_folder.has_state:
            self._tidy()  # a kill may have come between the last state and this
        else:
            self._save_state()
        self._is_out_of_time = self._is_past_limit()
        while True:
            if self._is_evaluation_due():
                self._evaluate(on_progress)
            if self._is_over():
                return
            self._train_epoch(on_progress, should_stop)
            self._save_state()

    def _is_past_limit(self) -> bool:
        return bool(self.config.max_minutes) and self.seconds >= 60 * self.config.max_minutes

    def _is_over(self) -> bool:
        return self.step >= self.total_steps or self._is_out_of_time or self._is_out_of_patience()

    def _is_out_of_patience(self) -> bool:
        if not self.config.patience or not self.evaluations:
            return False
        best = max(range(len(self.evaluations)), key=lambda i: self.evaluations[i]["dev_bleu"])
        return len(self.evaluations) - 1 - best >= self.config.patience

    def _is_evaluation_due(self) -> bool:
        if self.step == 0 or (self.evaluations and self.evaluations[-1]["step"] == self.step):
            return False
        is_epoch_end = self.batch_index == 0 and self.epoch % self.config.eval_every_epochs == 0
        return is_epoch_end or self._is_over()

    def _train_epoch(self, on_progress: OnProgress, should_stop: ShouldStop) -> None:
        """To the end of the epoch, or of the run."""
        batches = self.corpus.batches(self.epoch)
        src_ids, tgt_ids = self.corpus.epoch_ids(self.epoch)
        self.network.train()
        last_report = last_save = last = time.monotonic()
        for index in range(self.batch_index, len(batches)):
            if self._is_over():
                return
            rows = share(batches[index], self.group.rank, self.group.size)
            chosen = rows or batches[index][:1]  # without rows of its own a process still takes part, at no weight
            batch = collate([src_ids[i] for i in chosen], [tgt_ids[i] for i in chosen])
            num_tokens = sum(len(tgt_ids[i]) + 1 for i in batches[index])
            loss_sum = self._update(batch.to(self.device), num_tokens, is_weighted=bool(rows))
            self.batch_index = index + 1
            now = time.monotonic()
            self.seconds += now - last
            loss_sum, num_stops, num_past = self.group.sums(
                loss_sum, should_stop(), self.group.is_main and self._is_past_limit()
            )
            self._is_out_of_time = num_past > 0
            self._meter.add(loss_sum, num_tokens, now - last)
            last = now
            if now - last_report >= self.config.log_every_seconds:
                on_progress(self._progress())
                last_report = now
            if num_stops or now - last_save >= 60 * self.config.checkpoint_minutes:
                self._save_state()
                last_save = last = time.monotonic()
            if num_stops:
                raise Cancelled("training was asked to stop; its state is saved")
        self.epoch, self.batch_index = self.epoch + 1, 0

    def _update(self, batch: Batch, num_tokens: int, *, is_weighted: bool) -> float:
        """One update; returns the sum of this process's token losses."""
        torch.manual_seed(_step_seed(self.config.seed, self.step, self.group.rank))
        self._updater.forget_gradients()
        is_bf16 = self.precision == "bf16"
        with torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=is_bf16):
            loss_sum: Tensor = self._objective(*batch) * float(is_weighted)
        # The wrapper for several processes takes the mean over them where the sum is wanted.
        (loss_sum * (self.group.size / num_tokens)).backward()
        norm = self._updater.update(learning_rate(self.config, self.step, self.total_steps))
        if not torch.isfinite(norm):
            raise Diverged(
                f"the gradient is no number at step {self.step}: begin a new run with a lower learning_rate (it is "
                f"{self.config.learning_rate:g}) or clip_norm ({self.config.clip_norm:g}), or a longer warmup_steps "
                f"({self.config.warmup_steps}); to resume this one would end here again"
            )
        self.step += 1
        return float(loss_sum.detach())

    def _progress(self, *, is_evaluation: bool = False) -> Progress:
        last = self.evaluations[-1] if self.evaluations else {}
        left = self.seconds / max(1, self.step) * (self.total_steps - self.step)
        if self.config.max_minutes:
            left = min(left, 60 * self.config.max_minutes - self.seconds)
        loss, tokens_per_second = self._meter.read()
        return Progress(
            epoch=self._epochs_begun(),
            step=self.step,
            total_steps=self.total_steps,
            loss=loss,
            learning_rate=learning_rate(self.config, max(0, self.step - 1), self.total_steps),
            tokens_per_second=tokens_per_second,
            seconds=self.seconds,
            seconds_left=max(0.0, left),
            dev_loss=last.get("dev_loss"),
            dev_bleu=last.get("dev_bleu"),
            is_evaluation=is_evaluation,
        )

    def _epochs_begun(self) -> int:
        return self.epoch + (self.batch_index > 0 or self.step == 0)

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

    def _weights(self) -> dict[str, Tensor]:
        return {name: tensor.detach().cpu() for name, tensor in self.network.state_dict().items()}

    def _bleu(self, checkpoint: Checkpoint) -> float:
        return dev_bleu(Translator(checkpoint, device=self.device, precision="fp32"), self.dev, k=1)

    def _evaluate(self, on_progress: OnProgress) -> None:
        started = time.monotonic()
        loss, bleu = 0.0, 0.0
        if self.group.is_main:
            loss = dev_loss(self.network, self.dev, self.src_tokenizer, self.tgt_tokenizer, self.device)
            bleu = self._bleu(self.checkpoint(self._weights(), {})) if math.isfinite(loss) else 0.0
        seconds = self.seconds + time.monotonic() - started
        loss, bleu, self.seconds = self.group.from_main(loss, bleu, seconds)
        if not math.isfinite(loss):
            raise Diverged(
                f"the loss on the dev set is no number after step {self.step}: begin a new run with a lower "
                f"learning_rate (it is {self.config.learning_rate:g})"
            )
        self._is_out_of_time = self._is_out_of_time or self._is_past_limit()
        entry = {"epoch": self._epochs_begun(), "step": self.step, "dev_loss": loss, "dev_bleu": bleu}
        self.evaluations.append({**entry, "seconds": self.seconds})
        if self.group.is_main and self.step in self._best_steps():
            self._run_folder.save_weights(self.step, unshared(self.network))
        self._save_state()
        on_progress(self._progress(is_evaluation=True))

    def _best_steps(self) -> list[int]:
        ranked = sorted(self.evaluations, key=lambda e: (-e["dev_bleu"], e["step"]))
        return [entry["step"] for entry in ranked[: self.config.average_checkpoints]]

    def finish(self, out: str | Path, metrics: dict[str, Any]) -> Translator:
        """Averages the best checkpoints and saves the mean, or the best one where that has the higher dev BLEU.

        Killed and called again it writes the same weights. On rank 0 only. `metrics` is added to what the run knows of
        itself.
        """
        if not self.evaluations:
            raise TrainingError("the run ended before its first evaluation; give it more time")
        with explained(self.folder, self.config), self._run_folder.locked():
            if self._result is None:
                self._result = self._choose()
            bleu, name, weights = self._result
            self.network.load_state_dict(weights, strict=False)
            save_checkpoint(self.checkpoint(self._weights(), {**metrics, **self._known(bleu, name)}), out)
        return Translator.load(out, device=self.device)

    def _choose(self) -> tuple[float, str, dict[str, Tensor]]:
        """The best checkpoint or the mean of several, whichever scores higher: dev BLEU, what it is, weights."""
        best = self._best_steps()
        states = [self._run_folder.load_weights(step) for step in best]
        epochs = {entry["step"]: entry["epoch"] for entry in self.evaluations}
        candidates = {f"epoch {epochs[best[0]]}": states[0]}
        if len(states) > 1:
            names = ", ".join(str(epochs[step]) for step in sorted(best))
            candidates[f"mean of epochs {names}"] = average_weights(states)
        scored = []
        for name, weights in candidates.items():
            self.network.load_state_dict(weights, strict=False)
            scored.append((self._bleu(self.checkpoint(self._weights(), {})), name, weights))
        return max(scored, key=lambda entry: entry[0])

    def _known(self, bleu: float, name: str) -> dict[str, Any]:
        return {
            "weights": name,
            "dev_bleu_greedy": round(bleu, 2),
            "num_parameters": self.network.num_parameters,
            "epochs": self._epochs_begun(),
            "steps": self.step,
            "training_minutes": round(self.seconds / 60, 1),
            "parent": self.parent,
            "seed": self.config.seed,
            "precision": self.precision,
            "num_processes": self.group.size,
            "data_sha256": self.run["data_sha256"],
            "num_pairs": len(self.corpus.pairs),
            "tokenizer": self.run["tokenizer"],
            "training": self.config.to_json(),
            "evaluations": self.evaluations,
        }

    # -- state -----------------------------------------------------------------------------------------------------

    def _save_state(self) -> None:
        if not self.group.is_main:
            return
        tensors = {f"weights.{name}": tensor for name, tensor in unshared(self.network).items()}
        tensors |= {f"optimizer.{name}": tensor.cpu() for name, tensor in self._updater.state().items()}
        values = {
            "epoch": self.epoch,
            "batch_index": self.batch_index,
            "step": self.step,
            "seconds": self.seconds,
            "loss": self._meter.loss if math.isfinite(self._meter.loss) else None,
            "evaluations": self.evaluations,
        }
        self._run_folder.save_state(tensors, values)
        self._tidy()

    def _tidy(self) -> None:
        """Log and kept weights as the saved state has them."""
        if self.group.is_main:
            self._run_folder.write_log(self.evaluations)
            self._run_folder.keep_weights(self._best_steps())

    def _load_state(self) -> None:
        tensors, values = self._run_folder.load_state()
        weights = {k.removeprefix("weights."): v for k, v in tensors.items() if k.startswith("weights.")}
        self.network.load_state_dict(weights, strict=False)
        prefix = "optimizer."
        self._updater.load_state({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
        self.epoch, self.batch_index, self.step = values["epoch"], values["batch_index"], values["step"]
        self.seconds, self.evaluations = values["seconds"], values["evaluations"]
        if values["loss"] is not None:
            self._meter.loss = values["loss"]


def _step_seed(seed: int, step: int, rank: int) -> int:
    """What dropout draws from in one step of one process."""
    high, low = np.random.SeedSequence((seed, step, rank)).generate_state(2)
    return int(high) << 32 | int(low)
