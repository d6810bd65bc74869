"""The ops. To add one: write ``surgeon/ops/<name>.py``, add a line here; the contract tests find it by themselves."""

from surgeon.ops import spd as spd
