"""PyTorch's side of `bench peers`: the same step as a user of PyTorch and timm would write it.

`PYTHON bench/peer_torch.py OPTIONS` takes a JSON object, and answers each line of input with a JSON object. It is run
by another interpreter, which has torch, torchvision and timm, so it shares no code with the rest. The network is timm's
`legacy_xception` in channels-last layout, the optimizer the fused Adam. As in Thaw, no statistic of BatchNorm moves,
and the gradient of a frozen backbone is not computed.
"""

import json
import sys
import time

import numpy as np
import timm
import torch
from torch import nn
from torchvision.transforms import InterpolationMode, v2


def main() -> None:
    options = json.loads(sys.argv[1])
    torch.set_num_threads(options["threads"])
    torch.manual_seed(0)
    generator = np.random.default_rng(0)
    batch_size, size = options["batch_size"], options["image_size"]
    pixels = generator.integers(0, 256, (batch_size, size, size, 3), np.uint8)
    labels = torch.from_numpy(generator.integers(0, 2, batch_size, np.int32)).float()
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    augment = v2.Compose([v2.RandomHorizontalFlip(), v2.RandomRotation(36, interpolation=InterpolationMode.BILINEAR)])

    backbone = timm.create_model("legacy_xception", pretrained=False, num_classes=0)
    backbone = backbone.to(memory_format=torch.channels_last).eval()
    head = nn.Sequential(nn.Dropout(0.2), nn.Linear(backbone.num_features, 1))
    is_frozen = options["phase"] == "head"
    for parameter in backbone.parameters():
        parameter.requires_grad_(not is_frozen)
    trained = [parameter for module in (backbone, head) for parameter in module.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=1e-3 if is_frozen else 1e-5, eps=1e-7, fused=True)
    if options["compiled"]:
        backbone = torch.compile(backbone)
    is_bfloat16 = options["precision"] == "bfloat16"

    def step() -> None:
        # The draws of these classes are for all that one call gets, so each image has a call.
        batch = torch.stack([augment(image) for image in images])
        batch = (batch.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16, enabled=is_bfloat16):
            with torch.set_grad_enabled(not is_frozen):
                features = backbone(batch)
            logits = head(features).float().squeeze(1)
        loss = nn.functional.binary_cross_entropy_with_logits(logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    for _ in range(options["warm_up_steps"]):
        step()
    print(json.dumps({"version": torch.__version__}), flush=True)
    for _ in sys.stdin:
        began, used = time.monotonic(), time.process_time()
        step()
        seconds = {"seconds": time.monotonic() - began, "processor_seconds": time.process_time() - used}
        print(json.dumps(seconds), flush=True)


if __name__ == "__main__":
    main()
