"""Messages of any kind to a running signer: nothing hangs, nothing crashes, and the app that behaves is still answered."""

from __future__ import annotations

import base64
import json
import random
from contextlib import AsyncExitStack

from support.bunker import App, connected_app
from support.signer_owner import Owner, allow

PLAIN = [
    "",
    "x",
    "null",
    "[]",
    "{}",
    '{"id":"1"}',
    '{"id":1,"method":"ping"}',
    "[" * 5_000,
    '{"id":"a","method":"ping","params":[[]]}',
]


def payloads(app: App, chance: random.Random) -> list[str]:
    """Contents of events: what is no NIP-44, what is spoilt, and what opens and is no request."""
    good = app.encrypted(json.dumps({"id": "spoilt", "method": "ping", "params": []}))
    spoilt = [good[:at] + chance.choice("AZaz09+/=") + good[at + 1 :] for at in chance.sample(range(len(good)), 10)]
    raw = [base64.b64encode(b"\2" + chance.randbytes(size)).decode() for size in (0, 31, 98, 99, 600, 30_000)]
    return [
        "",
        "#",
        "AA",
        "\u2603",
        good[:-4],
        good * 2,
        *raw,
        *spoilt,
        *(app.encrypted(text) for text in PLAIN if text),
    ]


async def test_any_message_leaves_the_signer_well(owner: Owner, stack: AsyncExitStack) -> None:
    app = await connected_app(stack, (await owner.connection(allow(kind=1))).bunker_uri)
    for content in payloads(app, random.Random(46)):
        await app.publish(app.user.event(24133, [["p", app.signer_pubkey]], content=content))
    for tags in ([], [["p"]], [["p", "x"]], [["p", app.signer_pubkey], ["p", "ab" * 32]]):
        await app.publish(app.user.event(24133, tags, content="junk"))
    assert (await app.call("ping"))["result"] == "pong"
    assert "result" in await app.sign(kind=1)
    assert not app.answers_to("spoilt") or app.answers_to("spoilt") == [{"id": "spoilt", "result": "pong"}]
