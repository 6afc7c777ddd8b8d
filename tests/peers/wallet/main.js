// An app: Alby's NWC client on the connection URI in NWC_URL. One JSON line in ({"method", "params"}), one JSON line out.
import { createInterface } from "node:readline";
import { NWCClient } from "@getalby/sdk/nwc";

const client = new NWCClient({ nostrWalletConnectUrl: process.env.NWC_URL });
const notifications = [];
let arrived = () => {};

async function answer({ method, params }) {
  if (method === "subscribe") {
    await client.subscribeNotifications((notification) => {
      notifications.push(notification);
      arrived();
    });
    return { subscribed: true };
  }
  if (method === "notified") {
    while (notifications.length < params.count) await new Promise((done) => (arrived = done));
    return { notifications };
  }
  if (method === "getWalletServiceInfo") return await client.getWalletServiceInfo();
  return await client[method](params);
}

for await (const line of createInterface({ input: process.stdin })) {
  try {
    console.log(JSON.stringify({ result: await answer(JSON.parse(line)) }));
  } catch (error) {
    console.log(JSON.stringify({ error: { name: error.constructor.name, code: error.code ?? "", message: error.message } }));
  }
}
client.close();
process.exit(0);
