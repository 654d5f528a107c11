"""Bases from elsewhere: the Hugging Face hub, an Ollama on this machine, a folder that somebody else filled.

Only files that hold numbers and words are taken: safetensors, GGUF, JSON and templates. Never a pickle, never code.
"""
