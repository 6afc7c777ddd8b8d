"""A Lightning network for tests: real lnd nodes on a btcd that mines simnet when it is told to, on loopback alone.

alice - bob - carol: two public channels with money on both sides, so that whatever goes between alice and carol costs bob's fee.
"""

from __future__ import annotations

import base64
import json
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from http import HTTPStatus
from http.client import HTTPException, HTTPSConnection
from pathlib import Path
from typing import Any

from generator.outputs.local.processes import end_with_parent
from services.encoding import bech32
from support.lnd_programs import Programs
from support.mesh import free_port

WAIT_S = 120.0
"""How long a node may take to start, to see a block or to hear of a channel: seconds on an idle machine."""
POLL_S = 0.1
STOP_S_MAX = 30.0
RPC_USER, RPC_PASSWORD = "test", "test"
FIRST_BLOCKS = 300
"""So many that segregated witnesses are active and coins of a hundred blocks can be spent."""
CONFIRMATIONS = 6
"""What a channel needs before it is announced."""
CHANNEL_SAT = 10_000_000
FUNDS_SAT = 100_000_000
CALL_S = 30


class Process:
    """A program that is started, killed and started again with the same words."""

    def __init__(self, words: list[str], log: Path) -> None:
        self.words, self.log = words, log
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start it. Call this in the main thread: the program ends with the thread that started it."""
        assert self._process is None
        with self.log.open("ab") as log:
            self._process = subprocess.Popen([*end_with_parent(), *self.words], stdout=log, stderr=log)

    def kill(self) -> None:
        """SIGKILL: nothing is flushed and nobody is told."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(STOP_S_MAX)
            self._process = None

    def terminate(self) -> None:
        """SIGTERM, without waiting."""
        if self._process is not None:
            self._process.terminate()

    def stop(self) -> None:
        """SIGTERM, and SIGKILL when that does not help."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(STOP_S_MAX)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(STOP_S_MAX)
            self._process = None

    def check(self) -> None:
        """Fail with the log's end when the program ended by itself."""
        assert self._process is not None
        if self._process.poll() is not None:
            end = self.log.read_text(errors="replace")[-2_000:]
            raise AssertionError(f"{self.words[0]} ended with {self._process.returncode}:\n{end}")


def wait(ask: Callable[[], Any], what: str) -> Any:
    """Ask until the answer is true; an answer that fails for want of a connection counts as false."""
    end = time.monotonic() + WAIT_S
    while True:
        try:
            answer: Any = ask()
        except (OSError, HTTPException, RpcError) as error:
            answer, problem = None, f": {error}"
        else:
            problem = ""
        if answer:
            return answer
        assert time.monotonic() < end, f"waited {WAIT_S} s for {what}{problem}"
        time.sleep(POLL_S)


class RpcError(Exception):
    """The node's answer is an error."""


def call(port: int, certificate: Path, method: str, path: str, headers: dict[str, str], body: bytes | None) -> Any:
    """One HTTPS request to a node with its own certificate; the JSON of the answer."""
    context = ssl.create_default_context(cafile=str(certificate))
    with closing(HTTPSConnection("127.0.0.1", port, timeout=CALL_S, context=context)) as connection:
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        content = answer.read()
        if answer.status != HTTPStatus.OK:
            raise RpcError(content.decode(errors="replace"))
        return json.loads(content)


class Btcd:
    """The chain."""

    def __init__(self, program: Path, folder: Path) -> None:
        folder.mkdir()
        self.port = free_port()
        self.certificate = folder / "rpc.cert"
        self._words = [str(program), "--simnet", "--nolisten", f"--rpclisten=127.0.0.1:{self.port}"]
        self._words += [f"--rpcuser={RPC_USER}", f"--rpcpass={RPC_PASSWORD}", f"--rpccert={self.certificate}"]
        self._words += [
            f"--rpckey={folder}/rpc.key",
            f"--datadir={folder}/data",
            f"--logdir={folder}/logs",
            "--txindex",
        ]
        self._words += [f"--configfile={folder}/btcd.conf"]
        (folder / "btcd.conf").touch()
        self.process = Process(self._words, folder / "output.log")

    def start(self, mining_address: str) -> None:
        self.process.words = [*self._words, f"--miningaddr={mining_address}"]
        self.process.start()
        wait(lambda: self.ask("getblockcount") >= 0, "btcd")

    def ask(self, method: str, *parameters: object) -> Any:
        self.process.check()
        body = json.dumps({"jsonrpc": "1.0", "id": 1, "method": method, "params": parameters}).encode()
        credentials = base64.b64encode(f"{RPC_USER}:{RPC_PASSWORD}".encode()).decode()
        headers = {"Authorization": f"Basic {credentials}", "Content-Type": "application/json"}
        answer = call(self.port, self.certificate, "POST", "/", headers, body)
        if answer["error"] is not None:
            raise RpcError(str(answer["error"]))
        return answer["result"]

    def mine(self, blocks: int) -> None:
        self.ask("generate", blocks)


class Lnd:
    """A node: its gRPC port for the code under test, its REST port for the test's own wishes."""

    def __init__(self, program: Path, folder: Path, btcd: Btcd) -> None:
        self.name, self.folder = folder.name, folder
        folder.mkdir()
        self.port, self.rest_port, self.peer_port = free_port(), free_port(), free_port()
        self.certificate = folder / "tls.cert"
        words = [str(program), f"--lnddir={folder}", "--noseedbackup", "--bitcoin.simnet", "--bitcoin.node=btcd"]
        words += [f"--btcd.rpchost=127.0.0.1:{btcd.port}", f"--btcd.rpccert={btcd.certificate}"]
        words += [f"--btcd.rpcuser={RPC_USER}", f"--btcd.rpcpass={RPC_PASSWORD}"]
        words += [f"--rpclisten=127.0.0.1:{self.port}", f"--restlisten=127.0.0.1:{self.rest_port}"]
        words += [f"--listen=127.0.0.1:{self.peer_port}", f"--externalip=127.0.0.1:{self.peer_port}"]
        words += ["--nobootstrap", "--bitcoin.defaultchanconfs=1", "--trickledelay=50", "--gossip.sub-batch-delay=5ms"]
        words += ["--minbackoff=100ms", "--maxbackoff=500ms", "--historicalsyncinterval=1s", f"--alias={self.name}"]
        words += ["--caches.rpc-graph-cache-duration=100ms", "--healthcheck.chainbackend.attempts=0"]
        self.process = Process(words, folder / "output.log")

    @property
    def address(self) -> str:
        """Where its gRPC is served."""
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        self.process.start()
        self.wait_until_ready()

    def wait_until_ready(self) -> None:
        wait(self.ready, f"{self.name} to follow the chain")

    def ready(self) -> bool:
        """It follows the chain and takes orders: it answers getinfo a moment before it does the latter."""
        self.process.check()
        return bool(
            self.admin_macaroon.exists()
            and self.get("/v1/state")["state"] == "SERVER_ACTIVE"
            and self.get("/v1/getinfo")["synced_to_chain"]
        )

    @property
    def admin_macaroon(self) -> Path:
        return self.folder / "data/chain/bitcoin/simnet/admin.macaroon"

    def get(self, path: str) -> Any:
        return self._call("GET", path, None)

    def post(self, path: str, **body: object) -> Any:
        return self._call("POST", path, body)

    def delete(self, path: str) -> Any:
        return self._call("DELETE", path, None)

    def _call(self, method: str, path: str, body: dict[str, object] | None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        headers = {"Grpc-Metadata-macaroon": self.admin_macaroon.read_bytes().hex()}
        return call(self.rest_port, self.certificate, method, path, headers, data)

    @property
    def public_key(self) -> str:
        return str(self.get("/v1/getinfo")["identity_pubkey"])

    def new_address(self) -> str:
        return str(self.get("/v1/newaddress?type=WITNESS_PUBKEY_HASH")["address"])

    def bake(self, *methods: str, root_key: int = 0) -> Path:
        """A macaroon for these methods alone, in a file that only its owner reads."""
        permissions = [{"entity": "uri", "action": method} for method in methods]
        answer = self.post("/v1/macaroon", permissions=permissions, root_key_id=str(root_key))
        baked = bytes.fromhex(answer["macaroon"])
        path = self.folder / f"baked-{time.monotonic_ns()}.macaroon"
        path.touch(mode=0o600)
        path.write_bytes(baked)
        return path

    def plain_invoice(self, amount_msat: int | None) -> str:
        """An invoice that the node itself settles."""
        return str(self.post("/v1/invoices", value_msat=str(amount_msat or 0), memo="plain")["payment_request"])

    def balance_msat(self) -> int:
        """What is the node's own in its channels, without what is on its way."""
        return int(self.get("/v1/balance/channels")["local_balance"]["msat"])

    def on_its_way(self) -> int:
        """How many HTLCs its channels carry."""
        return sum(len(channel["pending_htlcs"]) for channel in self.get("/v1/channels")["channels"])

    def open_channel(self, peer: Lnd) -> None:
        """Half of the channel's money goes to the peer."""
        host = f"127.0.0.1:{peer.peer_port}"
        self.post("/v1/peers", addr={"pubkey": peer.public_key, "host": host}, timeout=str(CALL_S))
        key = base64.b64encode(bytes.fromhex(peer.public_key)).decode()
        amounts = {"local_funding_amount": str(CHANNEL_SAT), "push_sat": str(CHANNEL_SAT // 2)}
        wait(lambda: self.post("/v1/channels", node_pubkey=key, **amounts), f"{self.name} to open a channel")

    def knows_channels(self, count: int) -> bool:
        edges = self.get("/v1/graph")["edges"]
        return len([edge for edge in edges if edge["node1_policy"] and edge["node2_policy"]]) == count

    def channels_active(self, count: int) -> bool:
        return len(self.get("/v1/channels?active_only=true")["channels"]) == count


class LightningNetwork:
    """The chain and its three nodes."""

    def __init__(self, programs: Programs, folder: Path) -> None:
        self.btcd = Btcd(programs.btcd, folder / "btcd")
        self.alice, self.bob, self.carol = (
            Lnd(programs.lnd, folder / name, self.btcd) for name in ("alice", "bob", "carol")
        )
        self.nodes = (self.alice, self.bob, self.carol)

    def start(self) -> None:
        """Make the chain and its coins, the nodes, and the channels."""
        self.btcd.start(bech32.encode("sb", bytes(1) + bech32.words_of_bytes(bytes(20))))
        self.btcd.mine(1)
        self.alice.start()
        address = self.alice.new_address()
        self.alice.process.stop()
        self.btcd.process.stop()
        self.btcd.start(address)
        self.btcd.mine(FIRST_BLOCKS)
        for node in self.nodes:
            node.process.start()
        for node in self.nodes:
            node.wait_until_ready()
        self._fund()
        self._open_channels()

    def _fund(self) -> None:
        wait(
            lambda: int(self.alice.get("/v1/balance/blockchain")["confirmed_balance"]) > 2 * FUNDS_SAT, "alice's coins"
        )
        self.alice.post("/v1/transactions", addr=self.bob.new_address(), amount=str(FUNDS_SAT))
        self.mine(1)
        wait(lambda: int(self.bob.get("/v1/balance/blockchain")["confirmed_balance"]) == FUNDS_SAT, "bob's coins")

    def _open_channels(self) -> None:
        self.alice.open_channel(self.bob)
        self.bob.open_channel(self.carol)
        self.mine(CONFIRMATIONS)
        self.settled_down()

    def mine(self, blocks: int) -> None:
        """Mine, once the pool of transactions is there to be mined, and let all nodes see it."""
        self.btcd.mine(blocks)
        for node in self.nodes:
            wait(node.ready, f"{node.name} to see {blocks} blocks")

    def settled_down(self) -> None:
        """Wait until all channels are usable and everybody knows them."""
        for node, count in ((self.alice, 1), (self.bob, 2), (self.carol, 1)):
            wait(lambda node=node, count=count: node.channels_active(count), f"{node.name}'s channels")
            wait(lambda node=node: node.knows_channels(2), f"{node.name} to hear of the channels")

    def quiet(self) -> None:
        """Wait until no HTLC is on its way."""
        for node in self.nodes:
            wait(lambda node=node: node.on_its_way() == 0, f"{node.name}'s HTLCs")

    def money_msat(self) -> int:
        """What the three own in their channels together."""
        return sum(node.balance_msat() for node in self.nodes)

    def stop(self) -> None:
        """End everything, the nodes at the same time."""
        for node in self.nodes:
            node.process.terminate()
        for program in (*(node.process for node in self.nodes), self.btcd.process):
            program.stop()


@contextmanager
def running_network(programs: Programs, folder: Path) -> Iterator[LightningNetwork]:
    """A network that is stopped at the end, whatever happens."""
    network = LightningNetwork(programs, folder)
    try:
        network.start()
        yield network
    finally:
        network.stop()
