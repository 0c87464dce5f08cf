"""Learned tokens inside frozen towers: where they enter (``anatomy``), images (``inject``), texts (``text``)."""
