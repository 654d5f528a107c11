"""Data sets: conversations in three parts, as JSONL files in a folder. No torch."""
