"""The implementation of each command, from its config to its files."""
