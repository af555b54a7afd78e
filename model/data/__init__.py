"""From files of sentence pairs to batches of token ids: corpus → vocab, tokenizer → batching; and statistics."""
