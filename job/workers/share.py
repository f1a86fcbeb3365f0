"""What one worker of several takes of a batch, and of the batches of an evaluation. Pure arithmetic."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Share:
    """The part of worker `worker`, from 0, of `num_workers`; by default the one worker, which takes all."""

    worker: int = 0
    num_workers: int = 1

    def of(self, count: int) -> slice:
        """Its part of `count` things in a row; where that does not come out even, the first workers have one more."""
        each, more = divmod(count, self.num_workers)
        first = self.worker * each + min(self.worker, more)
        return slice(first, first + each + (self.worker < more))

    def rows(self, batch_size: int, num_rows: int) -> slice:
        """Its rows of a batch that has `num_rows`: those of a full batch as far as this one goes, perhaps none."""
        full = self.of(batch_size)
        return slice(min(full.start, num_rows), min(full.stop, num_rows))
