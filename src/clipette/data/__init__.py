"""Data in: sources, keys, splits, decoding, preprocessing, views, prompts and the rendered sample world. No PyTorch."""
