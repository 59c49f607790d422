"""A plugin for Aether, to learn from."""
