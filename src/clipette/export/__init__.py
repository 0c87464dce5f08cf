"""Models as bundles that need no PyTorch: ONNX graphs, tokenizers, and the proof that they say the same."""
