"""A trained model for other programs: a native folder, a GGUF file, an ONNX graph; each compared with its source."""
