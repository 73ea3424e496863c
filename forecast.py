from raincast.cli import forecast

if __name__ == "__main__":  # worker processes import this file, too
    forecast()
