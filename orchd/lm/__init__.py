"""The shared torch code: bases, adapters, chat templates, token losses, generation. Only workers import it."""
