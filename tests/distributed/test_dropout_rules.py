"""Random numbers under tensor and sequence parallelism: equal where they must be, different elsewhere."""

import dropout_rules
import pytest
import ranks

pytestmark = pytest.mark.distributed


def test_dropout_masks_follow_megatrons_rules():
    rules = dropout_rules.rules(ranks.run(dropout_rules.observe, 4))
    assert [rule for rule, holds in rules.items() if not holds] == []
