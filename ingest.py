from raincast.cli import ingest

ingest()
