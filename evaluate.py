from raincast.cli import evaluate

evaluate()
