"""A trained network for other programs: ONNX, safetensors, int8, and a model card."""
