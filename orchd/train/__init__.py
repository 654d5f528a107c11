"""Training and evaluation of adapters, data sets, and the script that makes the embedded base."""
