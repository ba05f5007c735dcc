"""Keras Tuner as its documentation shows it: a frozen VGG16 with a new head, searched on images in memory.

`tuner_alone.py TABLE WEIGHTS` takes a table with the columns path, label and split, and prints JSON.
"""

import argparse
import csv
import json
import tempfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np

SIZE_PX = 224


def read(table: Path, split: str) -> tuple[Any, Any]:
    """Decode the images of a part: `(images, 224, 224, 3)` as VGG16 takes them, and `(images,)` classes."""
    from keras.applications.vgg16 import preprocess_input

    with table.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    labels = sorted({row["label"] for row in rows})
    chosen = [row for row in rows if row["split"] == split]
    images = [
        cv2.resize(np.asarray(cv2.imread(row["path"]))[..., ::-1], (SIZE_PX, SIZE_PX)) for row in chosen
    ]
    classes = np.array([labels.index(row["label"]) for row in chosen])
    return preprocess_input(np.stack(images).astype("float32")), classes


def main() -> None:
    """Run as a command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table", type=Path)
    parser.add_argument("weights", type=Path)
    for name in ("trials", "epochs", "patience", "batch-size", "seed"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--policy", required=True)
    given = parser.parse_args()
    import keras
    import keras_tuner

    keras.mixed_precision.set_global_policy(given.policy)
    keras.utils.set_random_seed(given.seed)
    train, validation = read(given.table, "train"), read(given.table, "val")

    def build(hp: Any) -> Any:  # noqa: ANN401  Keras Tuner is untyped
        base = keras.applications.VGG16(
            weights=str(given.weights), include_top=False, pooling="avg", input_shape=(SIZE_PX, SIZE_PX, 3)
        )
        base.trainable = False
        values = base.output
        for _ in range(hp.Choice("dense_layers", [0, 1])):
            values = keras.layers.Dense(hp.Choice("dense_units", [64, 256]), activation="relu")(values)
        values = keras.layers.Dropout(hp.Float("dropout", 0.0, 0.6))(values)
        output = keras.layers.Dense(len(set(train[1])), activation="softmax", dtype="float32")(values)
        model = keras.Model(base.input, output)
        rate = hp.Float("learning_rate", 1e-4, 1e-2, sampling="log")
        model.compile(keras.optimizers.Adam(rate), "sparse_categorical_crossentropy", metrics=["accuracy"])
        return model

    with tempfile.TemporaryDirectory() as folder:
        tuner = keras_tuner.RandomSearch(
            build, "val_accuracy", max_trials=given.trials, seed=given.seed + 1, directory=folder
        )
        tuner.search(
            *train,
            validation_data=validation,
            epochs=given.epochs,
            batch_size=given.batch_size,
            callbacks=[keras.callbacks.EarlyStopping(patience=given.patience)],
            verbose=0,
        )
        trials = tuner.oracle.get_best_trials(given.trials)
        print(json.dumps({"scores": [trial.score for trial in trials]}))


if __name__ == "__main__":
    main()
