"""Between deltas and what others write: full checkpoints in, full checkpoints out."""
