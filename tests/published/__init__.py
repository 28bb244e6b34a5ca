"""Published data sets as they are distributed, in small, and the road that each goes with its recipe."""

import pytest

pytest.register_assert_rewrite("tests.published.road")
