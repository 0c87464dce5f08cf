"""Slow, obvious twins of the losses: lists of floats and plain loops, written from the papers' equations."""
