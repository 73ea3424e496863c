"""`python -m raincast.trial key=value …`: one trial of a sweep, the same as `python train.py key=value …`."""

from raincast.cli import train

if __name__ == "__main__":
    train()
