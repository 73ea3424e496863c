"""What every room uses: process pools, locks, files, progress, provenance, the cache."""
