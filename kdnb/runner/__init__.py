"""Notebooks run headless: planned, executed, kept, verified."""
