"""Shared by all packages: process pools, locks, files, progress, provenance, the cache."""
