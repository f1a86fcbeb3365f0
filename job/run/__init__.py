"""One attempt at a run: the record, the lease, the checkpoints, and the straight line of the work."""
