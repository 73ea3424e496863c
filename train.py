from raincast.cli import train

train()
