// The sorting machine of a depot. It reads the protobufs themselves when it starts; nothing is generated.
'use strict';

const path = require('node:path');
const grpc = require('@grpc/grpc-js');
const loader = require('@grpc/proto-loader');
const { HealthImplementation } = require('grpc-health-check');
const { Conduct, FORWARDED } = require('./behaviour');

const ROOT = path.resolve(__dirname, '..', '..');
const SORTING = 'courier.sorting.v1.SortingService';
const LABELS = 'courier.sorting.v1.LabelService';
const TRACKING = 'courier.tracking.TrackingService';
const CHUTES = 12;
const RETURNS_CHUTE = 99;
const KIND_SORTED = 2;
const KIND_RETURNED = 5;
const NEVER_SEEN = 'DISCREPANCY_NEVER_SEEN';

const definitions = loader.loadSync(['courier/sorting/v1/sorting.proto', 'courier/tracking/tracking.proto'], {
  includeDirs: [path.join(ROOT, 'protos'), path.join(ROOT, 'legacy')],
  keepCase: true,
  longs: String,
  enums: String,
});

const Tracking = grpc.makeGenericClientConstructor(definitions[TRACKING], 'Tracking');
const tracking = new Tracking(process.env.NIPMESH_EGRESS, grpc.credentials.createInsecure(), {
  'grpc.default_authority': process.env.NIPMESH_AUTHORITY,
});

// The chute that serves a postcode: always the same one.
function chuteOf(postcode) {
  return 1 + [...(postcode ?? '')].reduce((sum, character) => (sum * 31 + character.charCodeAt(0)) % CHUTES, 7);
}

// What of an incoming call goes along with the calls that are made for it.
function onward(call) {
  const metadata = new grpc.Metadata();
  for (const key of FORWARDED) call.metadata.get(key).forEach((value) => metadata.add(key, value));
  return [metadata, { deadline: call.getDeadline() }];
}

function record(call, scan) {
  return new Promise((resolve, reject) => {
    tracking.Record(scan, ...onward(call), (error, receipt) => (error ? reject(error) : resolve(receipt)));
  });
}

// Pipes one stream into another and ends it with the first one's failure.
async function* piped(from, call) {
  call.on('cancelled', () => from.cancel());
  for await (const message of from) yield message;
}

const sorting = {
  async Divert(call) {
    const scan = { waybill: call.request.waybill, kind: KIND_RETURNED, depot: 'machine', note: call.request.reason };
    const receipt = await record(call, scan);
    return { chute: RETURNS_CHUTE, sequence: receipt.sequence };
  },

  Induct(call) {
    return new Promise((resolve, reject) => {
      const report = tracking.Report(...onward(call), (error, summary) => (error ? reject(error) : resolve(summary)));
      call.on('data', (scan) => report.write({ ...scan, kind: KIND_SORTED }));
      call.on('end', () => report.end());
      call.on('cancelled', () => report.cancel());
    });
  },

  async *Watch(call) {
    yield* piped(tracking.Follow(call.request, ...onward(call)), call);
  },

  async *Sort(call) {
    const known = tracking.Reconcile(...onward(call));
    const chutes = [];
    call.on('data', ({ waybill, depot, postcode }) => {
      chutes.push(chuteOf(postcode));
      known.write({ waybill, depot });
    });
    call.on('end', () => known.end());
    for await (const answer of piped(known, call)) {
      yield { waybill: answer.waybill, chute: chutes.shift(), surprising: answer.discrepancy === NEVER_SEEN };
    }
  },
};

const labels = {
  async Print(call) {
    const { waybill, to } = call.request;
    const chute = chuteOf(to?.postcode);
    return { waybill, chute, barcode: `${waybill}|${String(chute).padStart(2, '0')}` };
  },
};

function failed(error) {
  if (error.code === undefined) console.error(error);
  return { code: error.code ?? grpc.status.INTERNAL, details: error.details ?? String(error), metadata: error.trailers ?? error.metadata };
}

async function begin(method, call) {
  const conduct = new Conduct(method, call);
  conduct.begin();
  await conduct.moment('before');
  await conduct.moment('headers');
  return conduct;
}

function single(method, work) {
  return async (call, callback) => {
    try {
      const conduct = await begin(method, call);
      const response = await work(call);
      conduct.done();
      await conduct.moment('after');
      callback(null, response);
    } catch (error) {
      callback(failed(error));
    }
  };
}

function streaming(method, work) {
  return async (call) => {
    try {
      const conduct = await begin(method, call);
      let count = 0;
      for await (const response of work(call)) {
        call.write(response);
        count += 1;
        if (count === 1) await conduct.moment('after');
      }
      conduct.done();
      call.end();
    } catch (error) {
      call.emit('error', failed(error));
    }
  };
}

function implemented(service, methods) {
  return Object.fromEntries(
    Object.entries(definitions[service]).map(([name, definition]) => {
      const wrap = definition.responseStream ? streaming : single;
      return [name, wrap(definition.path, methods[name])];
    }),
  );
}

const health = new HealthImplementation({ '': 'NOT_SERVING' });
const server = new grpc.Server();
server.addService(definitions[SORTING], implemented(SORTING, sorting));
server.addService(definitions[LABELS], implemented(LABELS, labels));
health.addToServer(server);

process.on('SIGTERM', () => {
  health.setStatus('', 'NOT_SERVING');
  const hard = setTimeout(() => server.forceShutdown(), 1000 * Number(process.env.NIPMESH_DRAIN_GRACE ?? 10));
  server.tryShutdown(() => {
    clearTimeout(hard);
    tracking.close();
    process.exit(0);
  });
});

server.bindAsync(process.env.NIPMESH_LISTEN, grpc.ServerCredentials.createInsecure(), (error) => {
  if (error) throw error;
  for (const name of ['', SORTING, LABELS]) health.setStatus(name, 'SERVING');
  console.log(`serving ${SORTING}, ${LABELS} on ${process.env.NIPMESH_LISTEN}`);
});
