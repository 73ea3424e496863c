"""The helpers of the tests themselves."""

import sys

from running import server


def check_loaded() -> None:
    assert {"torch", "lightning", "raincast.commands.train"} <= sys.modules.keys()


def test_processes_begin_with_everything_imported() -> None:
    """Else each of them would import for seconds."""
    process = server().Process(target=check_loaded)
    process.start()
    process.join()
    assert process.exitcode == 0
