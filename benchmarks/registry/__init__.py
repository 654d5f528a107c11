"""What the registry costs: the door, receiving, and a hundred thousand adapters."""
