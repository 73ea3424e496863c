"""Pictures, animations and HTML pages."""
