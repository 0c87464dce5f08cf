"""Clipette: draws what a large vision-language model knows into a small one."""
