"""What each command does, from its config to its files."""
