from raincast.cli import ingest

if __name__ == "__main__":  # worker processes import this file, too
    ingest()
