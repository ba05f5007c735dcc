"""What cached features and bfloat16 save in training, beside the same without them."""

import os
from pathlib import Path
from typing import Any

from commands import run_script
from medimg.runtime.machine.cpus import usable_cpus
from registry import figure

IMAGES = "images/brain-mri"
CACHE_TARGET = 50
BFLOAT16_TARGET = 4


@figure("training-speed")
def training_speed(images: int = 600) -> dict[str, Any]:
    """Epochs of VGG16 on the brain-MRI set: with and without cached features, in bfloat16 and in float32."""
    real = Path(os.environ["MEDIMG_TEST_DATA"])
    weights = real / "weights" / "vgg16_imagenet_notop.h5"
    times = {
        policy: run_script(
            "epoch_times.py", real / IMAGES, weights, "--policy", policy, "--images", str(images)
        )
        for policy in ("mixed_bfloat16", "float32")
    }
    bfloat16, float32 = times["mixed_bfloat16"], times["float32"]
    gains = {
        name: round(float32[name] / bfloat16[name], 2)
        for name in ("head_epoch_without_cache_s", "last_block_epoch_s", "all_blocks_ms_an_image")
    }
    cache = {
        policy: round(found["head_epoch_without_cache_s"] / found["head_epoch_with_cache_s"], 1)
        for policy, found in times.items()
    }
    print(f"cached features: {cache} times; bfloat16: {gains} times")
    return {
        "threads": usable_cpus(),
        "times": times,
        "cache_gain": cache,
        "cache_target": CACHE_TARGET,
        "bfloat16_gain": gains,
        "bfloat16_target": BFLOAT16_TARGET,
    }
