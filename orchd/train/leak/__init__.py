"""How much of its training data an adapter gives away."""
