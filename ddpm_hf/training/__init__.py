"""The training loop and what it keeps: EMA, checkpoints, the run folder."""
