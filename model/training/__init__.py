"""Training: epochs over parallel text with validation, checkpoints, early stopping, averaging, and a faithful resume.

trainer.py      the run itself: `Trainer`
run.py          its folder: options, state, weights of the best evaluations, log
corpus.py       the pairs as token ids, and the batches of each epoch
loss.py         what is minimised, on one process or several
schedule.py     the learning rate, and the update
evaluation.py   dev loss, dev BLEU, the mean of checkpoints
progress.py     what a run says of itself
failures.py     what goes wrong outside, in words for people
"""

from model.training.evaluation import average_weights, dev_bleu
from model.training.loss import batch_loss, masked_cross_entropy
from model.training.progress import Progress
from model.training.run import data_hash
from model.training.schedule import learning_rate
from model.training.trainer import Trainer

__all__ = [
    "Progress",
    "Trainer",
    "average_weights",
    "batch_loss",
    "data_hash",
    "dev_bleu",
    "learning_rate",
    "masked_cross_entropy",
]
