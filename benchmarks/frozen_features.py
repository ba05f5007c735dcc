"""The bar for fine-tuning: logistic regression on the frozen features of VGG16's ImageNet base.

`frozen_features.py DATA WEIGHTS` prints JSON: its accuracy on DATA's test part, and which images were right.
"""

import argparse
import json
from pathlib import Path
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from medimg.runtime.data import read_data
from medimg.runtime.images.rule import JpegRule
from medimg.runtime.machine.cpus import usable_cpus
from medimg.train.data.array_store import open_store
from medimg.train.data.decoded_images import DecodedImages, cache_images
from medimg.train.data.parts import Part, Parts
from medimg.train.fitting.job import Job
from medimg.train.fitting.options import FitOptions
from medimg.train.fitting.pretrained_base import PretrainedBase
from medimg.train.keras_setup import choose_policy, start_keras
from medimg.train.networks.build import POOL
from medimg.train.progress import Progress


def logistic_regression(data: Path, weights: Path, jpeg: JpegRule = "full") -> NDArray[np.bool_]:
    """Fit scikit-learn's logistic regression on the whole training part and score it on the test part.

    Args:
        data: a data set with the parts train and test.
        weights: VGG16's ImageNet weights without its top.
        jpeg: how JPEG files are decoded.

    Returns:
        Of each test image, whether its class was found.
    """
    from sklearn.linear_model import LogisticRegression

    start_keras(usable_cpus(), 0)
    options, dataset = FitOptions(jpeg=jpeg), read_data(data)
    base = PretrainedBase(weights, options, choose_policy("auto"))
    with open_store(None) as store:
        job = Job(store, usable_cpus(), Progress(), options)
        train, test = (
            _part(cache_images(dataset.part(name), options.image, options, job, name))
            for name in ("train", "test")
        )
        features = base.outputs(Parts(train, test), POOL, job)
        values = [part.inputs.astype(np.float32) for part in (features.train, features.validation)]
    found = LogisticRegression(max_iter=2000).fit(values[0], train.truth).predict(values[1])
    return np.asarray(found == test.truth, bool)


def _part(decoded: DecodedImages) -> Part:
    truth = decoded.dataset.truth
    return Part(decoded.images, truth, np.ones(len(truth), np.float32), decoded.key)


def main() -> None:
    """Run as a command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--jpeg", choices=get_args(JpegRule), default="full")
    options = parser.parse_args()
    right = logistic_regression(options.data, options.weights, options.jpeg)
    print(json.dumps({"accuracy": float(right.mean()), "right": right.tolist()}))


if __name__ == "__main__":
    main()
