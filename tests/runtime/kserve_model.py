"""A model of MLServer that answers with ONNX Runtime, to test the client against; MLServer imports it."""

from typing import Any

import onnxruntime
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse


class OnnxModel(MLModel):  # type: ignore[misc]  # mlserver is not looked into
    """Runs the file that its settings name."""

    async def load(self) -> bool:
        self._session: Any = onnxruntime.InferenceSession(self.settings.parameters.uri)
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        images = self.decode(payload.inputs[0], default_codec=NumpyCodec)
        (answers,) = self._session.run(None, {"image": images})
        outputs = [NumpyCodec.encode_output("probabilities", answers)]
        return InferenceResponse(model_name=self.name, outputs=outputs)
