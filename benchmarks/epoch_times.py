"""Times epochs of VGG16 in one precision, with and without cached features; prints one line of JSON.

A process of its own for each precision, so that no run warms up another's.
"""

import argparse
import json
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from medimg.runtime.data import DataSet, read_data
from medimg.runtime.machine.cpus import usable_cpus
from medimg.train.data.array_store import open_store
from medimg.train.data.division import Division, divide
from medimg.train.fitting.job import Job
from medimg.train.fitting.options import FitOptions
from medimg.train.fitting.preparation import Prepared, prepare
from medimg.train.keras_setup import Policy
from medimg.train.progress import Progress

FEW = 96
"""Images of the slowest training, that of all blocks."""


def measure(
    data: Path, weights: Path, policy: Policy, images: int = 600, image_size: int = 224
) -> dict[str, Any]:
    """Time epochs, validation included.

    Args:
        data: labelled images.
        weights: VGG16's, without its top.
        policy: what to compute in.
        images: training images to use; validation takes a third as many.
        image_size: side of the network's input, in pixels.
    """
    options = FitOptions(
        weights=str(weights), image_size=image_size, precision_policy=policy, epochs=20, fine_tune_epochs=0
    )
    whole = divide(read_data(data), options)
    division = _fewer(whole, images)
    with open_store(None) as store:
        job = Job(store, usable_cpus(), Progress(), options)
        prepared = prepare(division, job)
        block = replace(options, fine_tune_epochs=3, epochs=1)
        every = replace(block, unfreeze_blocks=5)
        return {
            "policy": policy,
            "training_images": len(division.train),
            "validation_images": len(division.validation),
            "head_epoch_with_cache_s": _epoch_s(prepared, job, phase=0),
            "head_epoch_without_cache_s": _without_cache_s(prepared, job),
            "last_block_epoch_s": _epoch_s(prepared, replace(job, options=block), phase=1),
            "all_blocks_ms_an_image": _all_blocks_ms(division, replace(job, options=every)),
        }


def _fewer(division: Division, images: int) -> Division:
    """Keep some training images, and a third as many for validation."""
    validation = _some(division.validation, images // 3)
    return replace(division, train=_some(division.train, images), validation=validation)


def _some(dataset: DataSet, images: int) -> DataSet:
    """Take images evenly from the whole set."""
    kept = min(images, len(dataset))
    return dataset.with_samples(dataset.samples[place * len(dataset) // kept] for place in range(kept))


def _epoch_s(prepared: Prepared, job: Job, phase: int) -> float:
    """Train, and give the median of the epochs after the first."""
    from medimg.train.fitting.finetune import train

    return statistics.median(epoch.seconds for epoch in train(prepared, job).phases[phase].epochs[1:])


def _without_cache_s(prepared: Prepared, job: Job) -> float:
    """Train the same head in the usual way: every image goes through the frozen base in every epoch."""
    from medimg.train.data.batches import Batches
    from medimg.train.fitting.finetune import image_transform
    from medimg.train.fitting.phases import Plan, run_phase
    from medimg.train.networks.build import POOL, build, copy_weights

    assert prepared.base is not None
    network = build(job.options, prepared.classes, prepared.policy)
    copy_weights(prepared.base.network, network)
    for layer in network.layers:
        layer.trainable = False
        if layer.name == POOL:
            break
    transform, size = image_transform(job.options), job.options.batch_size
    train = Batches(prepared.images.train, size, transform, job.options.seed)
    validation = Batches(prepared.images.validation, size, transform)
    plan = Plan("without cache", 3, 3, job.options.learning_rate)
    epochs = run_phase(network, train, validation, plan, job).epochs
    return statistics.median(epoch.seconds for epoch in epochs[1:])


def _all_blocks_ms(division: Division, job: Job) -> float:
    few = _fewer(division, FEW)
    seconds = _epoch_s(prepare(few, job), job, phase=1)
    return 1000 * seconds / len(few.train)


def main() -> None:
    """Run as a command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--policy", choices=get_args(Policy), default="float32")
    parser.add_argument("--images", type=int, default=600)
    options = parser.parse_args()
    print(json.dumps(measure(options.data, options.weights, options.policy, options.images)))


if __name__ == "__main__":
    main()
