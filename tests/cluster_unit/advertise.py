"""A node that only announces itself: `advertise.py INTERFACE ID FINGERPRINT NAME PORT TTL_S`, until its input is closed."""

from __future__ import annotations

import asyncio
import sys

from mdi.cluster.discovery import Advertisement, Directory


async def main() -> None:
    interface, node_id, fingerprint, name, port, ttl_s = sys.argv[1:]
    me = Advertisement(node_id, name, int(port), protocol=1)
    async with Directory(fingerprint, advertise=me, interfaces=[interface], ttl_s=int(ttl_s)):
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.read)


asyncio.run(main())
