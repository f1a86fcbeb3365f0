"""Where the workers of a run are."""

from dataclasses import dataclass

MARK = "{worker}"


@dataclass(frozen=True)
class Addresses:
    """`hosts` has one for each worker. Worker 0 is asked at `port`, and worker i shares tensors at `port` + 1 + i."""

    hosts: tuple[str, ...]
    port: int

    @classmethod
    def of(cls, worker_host: str, port: int, *, num_workers: int) -> "Addresses":
        """From a name with {worker} in it, a list separated by commas, or one name for all. Raises ValueError."""
        hosts = [host.strip() for host in worker_host.split(",")]
        if len(hosts) == 1:
            hosts = [hosts[0].replace(MARK, str(worker)) for worker in range(num_workers)]
        if len(hosts) != num_workers or not all(hosts):
            raise ValueError(f"has {len(hosts)} hosts, expected one for each of {num_workers} workers")
        if port + num_workers > 65535:
            raise ValueError(f"ends at port {port + num_workers}, expected at most 65535")
        return cls(tuple(hosts), port)

    @property
    def leader(self) -> tuple[str, int]:
        """Host and port at which worker 0 is asked."""
        return self.hosts[0], self.port

    @property
    def leader_text(self) -> str:
        return f"{self.hosts[0]}:{self.port}"

    def beside(self, worker: int) -> list[int]:
        """The workers that are on the host of this one, itself too."""
        return [other for other, host in enumerate(self.hosts) if host == self.hosts[worker]]

    def tensors(self, worker: int) -> tuple[str, int]:
        """Host and port at which a worker shares tensors."""
        return self.hosts[worker], self.port + 1 + worker
