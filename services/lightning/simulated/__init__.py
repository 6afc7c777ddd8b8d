"""The simulated Lightning network: no bitcoin moves, everything else is as it is out there, and repeatable by seed.

    node = await SimulatedPayingNode.open(data_directory, profile_of("seed=7,failures=0.1"))
    node = await SimulatedReceivingNode.open(data_directory, node_key)
    outsider = await Outsider.open(data_directory)      # pays invoices of the receiving node, rules over payments of the paying one

Its state lies in a SQLite file of its own and survives kill -9. Its invoices are of regtest: none of them looks like real money, and it
pays no invoice of another currency.
"""

from services.lightning.simulated.outside import Outsider
from services.lightning.simulated.paying import SimulatedPayingNode
from services.lightning.simulated.profile import Profile, profile_of
from services.lightning.simulated.receiving import SimulatedReceivingNode
from services.lightning.simulated.words import Behaviour

__all__ = ["Behaviour", "Outsider", "Profile", "SimulatedPayingNode", "SimulatedReceivingNode", "profile_of"]
