"""From the files of a radar service to an archive: readers (one file a format), quality, and `ingest`."""

from raincast.ingest.archive_folder import IngestReport
from raincast.ingest.pipeline import ingest

__all__ = ["IngestReport", "ingest"]
