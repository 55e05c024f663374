"""Items that are neither pairs of texts nor score items are refused before a request is sent."""

from __future__ import annotations

import pytest

from fairlead.clients import RewardClient
from fairlead.errors import InvalidInput


@pytest.mark.parametrize("item", ["ab", None, 5, ("a",), ("a", 1), ("a", "b", "c")])
def test_an_item_of_another_kind_is_invalid(item):
    with RewardClient("127.0.0.1:9") as client, pytest.raises(InvalidInput, match="^items"):
        client.score([item])
