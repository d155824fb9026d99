"""The training loop around a loss: Hugging Face's ``Trainer``, checkpoints without pickles, any number of processes."""
