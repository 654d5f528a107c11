"""Measurements of training, beside what others do."""
