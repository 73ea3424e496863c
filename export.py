from raincast.cli import export

export()
