"""Rows on choosing the adapter for each request."""
