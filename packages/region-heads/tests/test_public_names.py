import pytest
import region_heads


@pytest.mark.parametrize("name", region_heads.__all__)
def test_every_public_name_exists(name: str) -> None:
    assert getattr(region_heads, name) is not None
