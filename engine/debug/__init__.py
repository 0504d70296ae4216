"""Comparing engines with the meaning of their models; outside of what a runtime needs."""
