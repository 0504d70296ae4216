"""Tuning: measure the candidates of every layer, keep records, choose from records alone."""
