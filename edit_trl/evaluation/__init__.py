"""Measuring a student (L3)."""
