"""From the files of a radar service to an archive: readers (one file a format), quality, and `ingest`."""

from raincast.ingest.pipeline import ingest
from raincast.ingest.report import IngestReport

__all__ = ["IngestReport", "ingest"]
