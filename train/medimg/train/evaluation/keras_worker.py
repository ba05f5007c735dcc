"""What `keras_process` starts: one Keras that opens checked copies and answers over pipes."""

from pathlib import Path

from medimg.runtime import protocol
from medimg.runtime.files.plain import from_plain
from medimg.runtime.model.process import Message, Reply, opening, serve
from medimg.runtime.model.spec import Intensity
from medimg.train.evaluation.answers import keras_answer
from medimg.train.evaluation.heatmaps import keras_maps
from medimg.train.keras_files import load_copy
from medimg.train.keras_setup import start_keras
from medimg.train.networks.build import Network


def main() -> None:
    """Serve in the process."""
    networks: list[Network] = []

    def answer(message: Message, blobs: list[bytes]) -> Reply:
        if message["do"] == "open":
            networks.clear()
            start_keras(message["threads"]).backend.clear_session()
            with opening(message["bytes"]):
                networks.append(load_copy(Path(message["path"])))
            return {}, []
        (network,) = networks
        images, intensity = protocol.bytes_pixels(blobs[0]), from_plain(Intensity, message["intensity"])
        if message["do"] == "run":
            return {}, [protocol.array_bytes(keras_answer(network, intensity)(images))]
        maps = keras_maps(network, intensity)
        return ({"reason": maps}, []) if isinstance(maps, str) else ({}, [protocol.array_bytes(maps(images))])

    serve(answer)


if __name__ == "__main__":
    main()
