"""Every error that MDI raises on purpose: whose fault it is, and what to try next.

MdiError
├── UserError            what was typed or pointed at is wrong             exit code 2
│   ├── ModelError       a checkpoint, tokenizer or pack cannot be used
│   └── PromptTooLong    the conversation does not fit the context
├── ClusterError         the devices together cannot do it now             exit code 1
│   ├── NoRoom           the blocks do not fit the memory that is offered
│   ├── PeerError        another node refused or failed
│   │   ├── WrongCluster     it holds another cluster key
│   │   └── WrongVersion     it speaks another protocol version
│   ├── LinkError        a node cannot be reached, or fell silent
│   └── FrameError       bytes on the wire that are not a valid frame
├── HubError             the model hub, or the way to it, fails            exit code 1
└── InternalError        our own bug                                       exit code 1
"""

from __future__ import annotations


class MdiError(Exception):
    """One clear sentence (`str(error)`), and in `hint` what to type or try next.

    `peer` is the name of the node that raised it or fell silent; None: it arose in this process.
    """

    exit_code = 1
    peer: str | None = None

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


class UserError(MdiError):
    exit_code = 2


class ModelError(UserError):
    pass


class PromptTooLong(UserError):
    pass


class ClusterError(MdiError):
    pass


class NoRoom(ClusterError):
    pass


class PeerError(ClusterError):
    pass


class WrongCluster(PeerError):
    pass


class WrongVersion(PeerError):
    pass


class LinkError(ClusterError):
    pass


class FrameError(ClusterError):
    pass


class HubError(MdiError):
    pass


class InternalError(MdiError):
    pass
