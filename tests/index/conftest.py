from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.index.milvus_server import milvus_server


@pytest.fixture(scope="session")
def milvus_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real Milvus server; the test is skipped, with the reason, where it cannot start."""
    started = False
    try:
        with milvus_server(tmp_path_factory.mktemp("milvus")) as address:
            started = True
            yield address
    except OSError as error:
        if started:
            raise
        pytest.skip(f"no Milvus server here: {error}")
