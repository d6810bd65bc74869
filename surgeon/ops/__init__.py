"""The ops. To add one: write ``surgeon/ops/<name>.py``, add a line here; the contract tests find it by themselves."""

from surgeon.ops import aps as aps
from surgeon.ops import blurpool as blurpool
from surgeon.ops import freeze as freeze
from surgeon.ops import gap as gap
from surgeon.ops import gap_fc as gap_fc
from surgeon.ops import remove as remove
from surgeon.ops import shift as shift
from surgeon.ops import shuffle as shuffle
from surgeon.ops import spd as spd
from surgeon.ops import stochastic as stochastic
