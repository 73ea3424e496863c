"""Utilities for all packages: process pools, locks, atomic files, progress, provenance, the cache."""
