// What apps/common/behaviour.py does, in this language: notes of executions, and faults on request. Its description holds here.
'use strict';

const fs = require('node:fs');
const path = require('node:path');
const grpc = require('@grpc/grpc-js');

const FORWARDED = ['x-call-id', 'x-fault'];
const MOMENTS = ['before', 'headers', 'after'];
const KEYS = ['at', 'replica', 'when', 'delay', 'code', 'details', 'pushback', 'times', 'exit'];
const executions = new Map();

function parseFault(text) {
  const fault = Object.fromEntries(
    text.split(';').filter((word) => word.trim()).map((word) => {
      const [key, ...value] = word.trim().split('=');
      return [key, value.join('=')];
    }),
  );
  const unknown = Object.keys(fault).filter((key) => !KEYS.includes(key));
  fault.when ??= 'before';
  if (unknown.length || !fault.at || !MOMENTS.includes(fault.when) || (fault.code && !(fault.code in grpc.status))) {
    throw new Error(`no fault: ${text}`);
  }
  return fault;
}

function first(metadata, key) {
  return String(metadata.get(key)[0] ?? '');
}

class Conduct {
  constructor(method, call) {
    this.method = method;
    this.call = call;
    this.callId = first(call.metadata, 'x-call-id');
    this.faults = first(call.metadata, 'x-fault').split('|').filter((text) => text.trim()).map(parseFault);
  }

  begin() {
    const key = `${this.callId} ${this.method}`;
    this.count = (executions.get(key) ?? 0) + 1;
    executions.set(key, this.count);
    const caller = first(this.call.metadata, 'x-forwarded-client-cert').split('URI=')[1]?.split(';')[0] ?? '';
    const remaining = Number(this.call.getDeadline()) - Date.now();
    this.note('seen', { caller, remaining_ms: Number.isFinite(remaining) ? Math.trunc(remaining) : null });
  }

  done() {
    this.note('done', {});
  }

  // Misbehaves if the caller wants it now: throws what the handler has to fail with.
  async moment(when) {
    for (const fault of this.faults.filter((candidate) => this.concerns(candidate, when))) {
      if (when === 'headers') this.call.sendMetadata(new grpc.Metadata());
      await new Promise((resolve) => setTimeout(resolve, Number(fault.delay ?? 0)));
      if (fault.exit === '1') process.kill(process.pid, 'SIGKILL');
      if (fault.code) throw this.failure(fault);
    }
  }

  concerns(fault, when) {
    const [service, method] = fault.at.split('/');
    const here = service === process.env.NIPMESH_SERVICE && (!method || this.method.endsWith(`/${method}`));
    const mine = fault.replica === undefined || fault.replica === process.env.NIPMESH_REPLICA;
    return here && mine && fault.when === when && (fault.times === undefined || this.count <= Number(fault.times));
  }

  failure(fault) {
    const metadata = new grpc.Metadata();
    if (fault.pushback !== undefined) metadata.set('grpc-retry-pushback-ms', fault.pushback);
    return { code: grpc.status[fault.code], details: fault.details ?? 'as told', metadata };
  }

  note(event, more) {
    if (!this.callId) return;
    const { NIPMESH_SERVICE: service, NIPMESH_REPLICA: replica, NIPMESH_DATA_DIRECTORY: folder } = process.env;
    const entry = { event, call_id: this.callId, service, replica: Number(replica), pid: process.pid, method: this.method };
    fs.appendFileSync(path.join(folder, 'executions.jsonl'), `${JSON.stringify({ ...entry, ...more })}\n`, { mode: 0o600 });
  }
}

module.exports = { Conduct, FORWARDED };
