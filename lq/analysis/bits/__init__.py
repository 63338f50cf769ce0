"""How many bits each layer gets, under a budget."""

from lq.analysis.bits.choice import BitChoice as BitChoice
from lq.analysis.bits.search import choose_bits as choose_bits
from lq.analysis.bits.settings import AutoBits as AutoBits
