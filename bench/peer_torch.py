"""PyTorch's side of `bench peers`: the same step as a user of PyTorch and timm would write it.

`PYTHON bench/peer_torch.py OPTIONS` takes a JSON object, and answers as `bench/peer_answers.py` has it, which is all
that it shares with the rest: it is run by another interpreter, which has torch, torchvision and timm. The network is
timm's `legacy_xception` in channels-last layout, the optimizer the fused Adam. As in Thaw, no statistic of BatchNorm
moves, and the gradient of a frozen backbone is not computed.

`compiled` is the mode of `torch.compile`, or nothing. On a GPU the pixels lie there, TensorFloat-32 is allowed, and the
whole batch is flipped and rotated at once, by angles of its own for each image; on a processor each image by itself, as
torchvision has it.
"""

import json
import sys
import time
from typing import Any

import numpy as np
import timm
import torch
from peer_answers import Steps, answer  # type: ignore[import-not-found] # beside this script
from torch import nn
from torchvision.transforms import InterpolationMode, v2


def main() -> None:
    options = json.loads(sys.argv[1])
    device, size = options["device"], options["image_size"]
    torch.set_num_threads(options["threads"])
    torch.manual_seed(0)
    if device == "cuda":
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.benchmark = True
    backbone = timm.create_model("legacy_xception", pretrained=False, num_classes=0)
    backbone = backbone.to(device, memory_format=torch.channels_last).eval()
    head = nn.Sequential(nn.Dropout(0.2), nn.Linear(backbone.num_features, 1)).to(device)
    is_frozen = options["phase"] == "head"
    for parameter in backbone.parameters():
        parameter.requires_grad_(not is_frozen)
    trained = [parameter for module in (backbone, head) for parameter in module.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=1e-3 if is_frozen else 1e-5, eps=1e-7, fused=True)
    if options["compiled"]:
        backbone = torch.compile(backbone, mode=options["compiled"], dynamic=False)
    augmented = _augmented_one_by_one if device == "cpu" else _augmented_at_once
    is_bfloat16 = options["precision"] == "bfloat16"

    def step(images: Any, labels: Any) -> None:
        if device == "cuda":
            torch.compiler.cudagraph_mark_step_begin()
        batch = (augmented(images) / 127.5 - 1).contiguous(memory_format=torch.channels_last)
        with torch.autocast(device, torch.bfloat16, enabled=is_bfloat16):
            with torch.set_grad_enabled(not is_frozen):
                features = backbone(batch)
            logits = head(features).float().squeeze(1)
        loss = nn.functional.binary_cross_entropy_with_logits(logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def steps_of(batch_size: int) -> Steps:
        examples = _drawn(batch_size, size, device)

        def steps(num_steps: int) -> tuple[int, float]:
            began = time.monotonic()
            for _ in range(num_steps):
                step(*examples)
            if device == "cuda":
                torch.cuda.synchronize()
            return num_steps, time.monotonic() - began

        return steps

    answer(torch.__version__, steps_of, warm_up_steps=options["warm_up_steps"])


def _drawn(batch_size: int, size: int, device: str) -> tuple[Any, Any]:
    """Images uint8 [b, 3, s, s] and labels float32 [b]."""
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (batch_size, size, size, 3), np.uint8)
    labels = torch.from_numpy(generator.integers(0, 2, batch_size, np.int32)).float()
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).to(device), labels.to(device)


ONE_BY_ONE = v2.Compose([v2.RandomHorizontalFlip(), v2.RandomRotation(36, interpolation=InterpolationMode.BILINEAR)])


def _augmented_one_by_one(images: Any) -> Any:
    # The draws of these classes are for all that one call gets, so each image has a call.
    return torch.stack([ONE_BY_ONE(image) for image in images]).float()


def _augmented_at_once(images: Any) -> Any:
    angles = (torch.rand(len(images), device=images.device) * 2 - 1) * (torch.pi / 5)
    flips = torch.where(torch.rand(len(images), device=images.device) < 0.5, -1.0, 1.0)
    cos, sin, zero = angles.cos(), angles.sin(), torch.zeros_like(angles)
    matrices = torch.stack([cos * flips, -sin, zero, sin * flips, cos, zero], 1).reshape(-1, 2, 3)
    grid = nn.functional.affine_grid(matrices, images.shape, align_corners=False)
    return nn.functional.grid_sample(images.float(), grid, align_corners=False)


if __name__ == "__main__":
    main()
