"""Where the processes come from that are killed, stopped and starved."""

from collections.abc import Iterator

import pytest

from forking import Server


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Starts processes in milliseconds."""
    with Server(tmp_path_factory.mktemp("logs")) as server:
        yield server
