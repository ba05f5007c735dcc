"""What most people write: read, resize and predict one image after another in Keras.

`usual_loop.py MODEL IMAGE…` prints the seconds and the first class of each image as JSON.
"""

import json
import sys
import time

import cv2
import numpy as np


def main() -> None:
    """Time the loop, without loading the model and without the first call, which traces it."""
    import keras
    from keras.applications.vgg16 import preprocess_input

    model = keras.models.load_model(sys.argv[1])

    def classify(path: str) -> int:
        image = cv2.resize(np.asarray(cv2.imread(path))[..., ::-1], (224, 224))
        return int(model.predict(preprocess_input(image[np.newaxis].astype("float32")), verbose=0).argmax())

    classify(sys.argv[2])
    start = time.perf_counter()
    top1 = [classify(path) for path in sys.argv[2:]]
    print(json.dumps({"seconds": time.perf_counter() - start, "top1": top1}))


if __name__ == "__main__":
    main()
