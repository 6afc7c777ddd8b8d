"""Clients that nobody here wrote: grpcurl, buf curl and Node's @grpc/grpc-js."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import grpc.aio
import pytest

from support.mesh import RunningMesh
from support.nostr import User
from support.wallet import Wallet, funded, request_id

pytestmark = pytest.mark.mesh

SECONDS_MAX = 60
EXPOSED = {
    "grpc.health.v1.Health",
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
    "nipmesh.invoice.v1.InvoiceService",
    "nipmesh.invoice.v1.SimulatedNetworkService",
    "nipmesh.nip.v1.AuthService",
    "nipmesh.nip.v1.NipService",
    "nipmesh.nip.v1.RemoteSignerService",
    "nipmesh.nip.v1.WalletConnectService",
    "nipmesh.nip.v1.ZapService",
    "nipmesh.operations.v1.SagaService",
    "nipmesh.payment.v1.AccountService",
    "nipmesh.payment.v1.LedgerService",
    "nipmesh.payment.v1.PaymentOperatorService",
    "nipmesh.payment.v1.PaymentService",
}


def run(*command: str, **options: object) -> str:
    """One command that must succeed; its standard output."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS_MAX, check=False, **options)  # type: ignore[call-overload]
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
    return str(done.stdout)


@pytest.fixture(scope="module")
def grpcurl() -> str:
    """grpcurl's path."""
    go_path = Path(run("go", "env", "GOPATH").strip()) / "bin" / "grpcurl" if shutil.which("go") else None
    found = shutil.which("grpcurl") or (str(go_path) if go_path and go_path.exists() else None)
    if found is None:
        pytest.skip("grpcurl is not installed (go install github.com/fullstorydev/grpcurl/cmd/grpcurl@latest)")
    return found


def test_grpcurl_lists_describes_and_calls(mesh: RunningMesh, grpcurl: str, alice: User) -> None:
    assert set(run(grpcurl, "-plaintext", mesh.gateway, "list").split()) >= EXPOSED - {
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
    }
    methods = run(grpcurl, "-plaintext", mesh.gateway, "list", "nipmesh.invoice.v1.InvoiceService")
    assert "nipmesh.invoice.v1.InvoiceService.CreateInvoice" in methods
    description = run(grpcurl, "-plaintext", mesh.gateway, "describe", "nipmesh.nip.v1.SignEventRequest")
    assert "string key_id" in description
    token = alice.metadata[0][1]
    body = json.dumps({"request_id": request_id(), "fresh": True})
    options = ["-plaintext", "-H", f"authorization: {token}", "-d", body, mesh.gateway]
    assert "npub1" in run(grpcurl, *options, "nipmesh.nip.v1.NipService/CreateKey")
    health = run(grpcurl, "-plaintext", mesh.gateway, "grpc.health.v1.Health/Check")
    assert json.loads(health) == {"status": "SERVING"}


def test_grpcurl_prints_the_reason_of_an_error(mesh: RunningMesh, grpcurl: str, alice: User) -> None:
    body = json.dumps({"key_id": request_id()})
    options = ["-plaintext", "-H", f"authorization: {alice.metadata[0][1]}", "-d", body, mesh.gateway]
    command = [grpcurl, *options, "nipmesh.nip.v1.NipService/GetKey"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS_MAX, check=False)
    assert '"reason": "KEY_NOT_FOUND"' in done.stderr


def test_internal_services_are_not_listed(mesh: RunningMesh, grpcurl: str) -> None:
    listed = run(grpcurl, "-plaintext", mesh.gateway, "list")
    assert "InvoiceSettlementService" not in listed
    assert "InvoiceLedgerService" not in listed
    assert "WalletPaymentService" not in listed
    assert "WalletInvoiceService" not in listed


def test_buf_curl_lists_and_calls(mesh: RunningMesh, alice: User) -> None:
    buf = str(Path(sys.executable).parent / "buf")
    url = f"http://{mesh.gateway}"
    common = ["curl", "--http2-prior-knowledge", "--protocol", "grpc"]
    listed = run(buf, *common, "--list-services", url)
    assert {line for line in listed.split() if line.startswith("nipmesh")} == {
        name for name in EXPOSED if name.startswith("nipmesh")
    }
    options = ["-H", f"authorization: {alice.metadata[0][1]}", "-d", "{}"]
    assert json.loads(run(buf, *common, *options, f"{url}/nipmesh.nip.v1.NipService/ListKeys")) == {}


NODE_CLIENT = """
const grpc = require('@grpc/grpc-js');
const loader = require('@grpc/proto-loader');
const fs = require('fs');
const crypto = require('crypto');
const [descriptors, gateway, token, account, invoice] = process.argv.slice(2);
const set = fs.readFileSync(descriptors);
const definition = loader.loadFileDescriptorSetFromBuffer(set, { keepCase: true, longs: String, enums: String });
const payments = grpc.loadPackageDefinition(definition).nipmesh.payment.v1;
const client = new payments.PaymentService(gateway, grpc.credentials.createInsecure());
const metadata = new grpc.Metadata();
metadata.set('authorization', token);
const request = { request_id: crypto.randomUUID(), account_id: account, payment_request: invoice };
client.PayInvoice(request, metadata, { deadline: Date.now() + 30000 }, (error, response) => {
  if (error) { console.error(error.message); process.exit(1); }
  console.log(JSON.stringify(response.payment));
  process.exit(0);
});
"""


async def test_a_node_client_pays_an_invoice(
    mesh: RunningMesh, channel: grpc.aio.Channel, alice: User, bob: User, operator: User, tmp_path: Path
) -> None:
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("Node.js is not installed")
    payer, payee = Wallet(channel, alice), Wallet(channel, bob)
    source = await funded(payer, Wallet(channel, operator), 10_000)
    invoice = await payee.invoice(await payee.open_account(), 2_500)
    (tmp_path / "pay.js").write_text(NODE_CLIENT)
    mesh.succeed("descriptors", "--output", str(tmp_path / "mesh.binpb"))
    run("npm", "install", "--no-audit", "--no-fund", "@grpc/grpc-js@1", "@grpc/proto-loader@0.8", cwd=tmp_path)
    arguments = ["mesh.binpb", mesh.gateway, alice.metadata[0][1], source, invoice.payment_request]
    payment = json.loads(run("node", "pay.js", *arguments, cwd=tmp_path))
    assert (payment["state"], payment["amount_msat"]) == ("STATE_SUCCEEDED", "2500")
    assert (await payer.account(source)).balance_msat == 7_500
