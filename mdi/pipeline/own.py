"""The daemon that runs from this process's own home: what its owner granted it."""

from __future__ import annotations

from mdi.cluster.certificates import issue_credentials
from mdi.cluster.home import Home
from mdi.cluster.identity import Identity
from mdi.cluster.key import ClusterKey
from mdi.errors import MdiError
from mdi.node.dial import Dialler, NodeAddress
from mdi.pipeline.peer import connect
from mdi.pipeline.survey import LOOPBACK
from mdi.wire import mdi_pb2 as pb


async def own_info(home: Home) -> pb.NodeInfo | None:
    """What that daemon says of itself; None when none runs, or it does not answer on this device."""
    if (running := home.running()) is None:
        return None
    address = NodeAddress(running.node_id, running.name, (LOOPBACK,), running.port)
    try:
        dialler = Dialler(issue_credentials(ClusterKey.load(home), Identity.load_or_create(home)))
        async with connect(dialler, address) as peer:
            return await peer.info()
    except MdiError:
        return None
