"""What the node decides, without a clock, a network or chance of its own: all three are arguments."""
