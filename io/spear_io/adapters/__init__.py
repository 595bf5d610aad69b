"""Exporters from training frameworks: one module each, which imports its framework only when it is imported."""
