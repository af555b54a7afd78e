"""Training jobs: from datasets to a promoted model, on a durable workflow engine and in processes of their own.

spec.py       what a job is asked to do, as a frozen value
failures.py   why a job ended without a model, and what a person can do about it
events.py     the run's news, one JSON object a line, followed by byte offset
run.py        the folder of one run: what each stage leaves behind
splits.py     train, dev and test sentences out of the datasets
stages.py     the work itself: prepare, tokenizer, train, evaluate
trainer.py    the process that does it: `python -m service.jobs.trainer FOLDER STAGE`
process.py    starts and watches that process
store.py      the jobs in the database: submit, list, cancel, resume (any process)
engine.py     takes jobs from the queue and runs them (one engine a process)
curve.py      loss and BLEU of a run
jobs.py       what routers call
"""
