"""GGUF, the file format of llama.cpp: header, block formats, config, tokenizer and weights, read without llama.cpp."""
