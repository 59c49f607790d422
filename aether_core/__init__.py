"""Aether: one TOML file makes a highly available cluster and runs services on it."""

__version__ = "0.1.0.dev0"
