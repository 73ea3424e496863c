from raincast.cli import forecast

forecast()
