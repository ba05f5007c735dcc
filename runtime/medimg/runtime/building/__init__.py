"""An engine from an ONNX file, built and verified on the GPU that will run it."""
