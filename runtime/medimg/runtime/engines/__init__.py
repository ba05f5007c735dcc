"""TensorRT engines: built from exported ONNX files on the device, trusted, verified, and run."""
