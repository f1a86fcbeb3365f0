"""One attempt at a run: the record, the lease, the checkpoints, and the pipeline."""
