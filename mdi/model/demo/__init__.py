"""The built-in chat model `demo`, as package data: a Hugging Face checkpoint that `tools/train_demo.py` makes (see MODEL.md)."""
