"""How long a step would take on many GPUs: arithmetic from parts. docs/scaling.md says which of them were measured.

`python -m bench.scale_model` prints its tables, also for other parts; `--write` puts them into that page.
"""

import argparse
import re
from dataclasses import dataclass, replace

from bench.table import SCALING
from job.model.backbones import BACKBONES

GIGABITS = (100, 400)
NUM_GPUS = (1, 8, 16, 64)
BATCH_SIZES = (32, 256, 2048)
IMAGES_PER_SECOND = {
    "MobileNetV2": 18_500, "EfficientNetV2B0": 20_100, "ResNet50V2": 10_300, "Xception": 7_100, "ConvNeXtTiny": 6_500
}  # fmt: skip
"""Of an H100 at 150 pixels. Assumed: see docs/scaling.md."""

_PLACE = re.compile(r"(?<=<!-- scale model -->\n).*?(?=<!-- /scale model -->)", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What a step is made of. Rates are those of one GPU, and of the network of one node; bytes and seconds."""

    images_per_second: float
    gradient_bytes: float
    floor_seconds: float = 0.0115
    """Of a step, however few its images: 2,300 operations of 5 us."""
    gpus_per_node: int = 8
    node_bytes_per_second: float = 300e9
    network_gigabits: float = 100
    network_share: float = 0.8
    begin_seconds: float = 1e-3
    """Of an all-reduce, however small."""
    node_hop_seconds: float = 3e-6
    network_hop_seconds: float = 15e-6

    def compute_seconds(self, batch_size: int, num_gpus: int) -> float:
        """Forward, backward and Adam of the GPU that has most rows."""
        rows = -(-batch_size // num_gpus)
        return max(self.floor_seconds, rows / self.images_per_second)

    def all_reduce_seconds(self, num_gpus: int) -> float:
        """A ring through all GPUs, in which each sends 2 (W - 1) / W of the gradient in 2 (W - 1) hops.

        It enters and leaves each node once, so the network of a node carries what one GPU sends.
        """
        if num_gpus == 1:
            return 0.0
        rate, hop = self.node_bytes_per_second, self.node_hop_seconds
        if num_gpus > self.gpus_per_node:
            # In each of its hops, the ring is as slow as its slowest link.
            rate, hop = self.network_share * self.network_gigabits * 1e9 / 8, self.network_hop_seconds
        return self.begin_seconds + 2 * (num_gpus - 1) * (self.gradient_bytes / num_gpus / rate + hop)

    def step_seconds(self, batch_size: int, num_gpus: int) -> float:
        """One after the other: the all-reduce begins when the last gradient is there."""
        return self.compute_seconds(batch_size, num_gpus) + self.all_reduce_seconds(num_gpus)

    def speed_up(self, batch_size: int, num_gpus: int) -> float:
        """How much faster than one GPU with the same batch."""
        return self.step_seconds(batch_size, 1) / self.step_seconds(batch_size, num_gpus)


def parts_of(backbone: str) -> Parts:
    gradient_bytes = 4 * BACKBONES[backbone].num_parameters
    return Parts(images_per_second=IMAGES_PER_SECOND[backbone], gradient_bytes=gradient_bytes)


def markdown(parts: Parts) -> str:
    """Steps of these parts by batch and GPUs, on each network."""
    lines = _head("batch", "GPUs", "images on each")
    for batch_size in BATCH_SIZES:
        for num_gpus in NUM_GPUS:
            idle = num_gpus - batch_size
            shown = f"1, and {idle} GPUs have none" if idle > 0 else f"{batch_size // num_gpus:,}"
            lines.append(f"| {batch_size:,} | {num_gpus} | {shown} |{_cells(parts, batch_size, num_gpus)}")
    return "\n".join(lines) + "\n"


def markdown_of_backbones() -> str:
    """A step of the largest batch on most GPUs, of each backbone."""
    lines = _head("backbone", "images a second of one GPU", "gradient")
    for name in IMAGES_PER_SECOND:
        parts = parts_of(name)
        shown = f"{parts.images_per_second:,.0f} | {parts.gradient_bytes / 1e6:.0f} MB"
        lines.append(f"| {name} | {shown} |{_cells(parts, BATCH_SIZES[-1], NUM_GPUS[-1])}")
    return "\n".join(lines) + "\n"


def with_tables(text: str) -> str:
    """A page with both tables in their places, one after the other."""
    tables = iter((markdown(parts_of("Xception")), markdown_of_backbones()))
    return _PLACE.sub(lambda _: next(tables), text)


def _head(*columns: str) -> list[str]:
    networks = [f"{what} at {gigabits} Gb/s" for gigabits in GIGABITS for what in ("step", "times one GPU")]
    return ["| " + " | ".join((*columns, *networks)) + " |", "|---" * (len(columns) + len(networks)) + "|"]


def _cells(parts: Parts, batch_size: int, num_gpus: int) -> str:
    cells = ""
    for gigabits in GIGABITS:
        on = replace(parts, network_gigabits=gigabits)
        cells += f" {1e3 * on.step_seconds(batch_size, num_gpus):.1f} ms | {on.speed_up(batch_size, num_gpus):.1f} |"
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.scale_model", description=__doc__.splitlines()[0])
    xception = parts_of("Xception")
    for name in ("images_per_second", "gradient_bytes", "floor_seconds", "node_bytes_per_second", "network_share"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=float, default=getattr(xception, name))
    parser.add_argument("--write", action="store_true", help="write the tables of docs/scaling.md, without other parts")
    options = vars(parser.parse_args())
    if options.pop("write"):
        SCALING.write_text(with_tables(SCALING.read_text()))
    else:
        print(markdown(replace(xception, **options)))


if __name__ == "__main__":
    main()
