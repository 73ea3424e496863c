from raincast.cli import evaluate

if __name__ == "__main__":  # worker processes import this file, too
    evaluate()
