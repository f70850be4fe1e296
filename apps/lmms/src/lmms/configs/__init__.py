"""Presets of the application, as YAML."""
