// Calls a Penstock gateway with stubs made from protos/ alone: `node client.js HOST:PORT PROTOS`. Prints one JSON object.
'use strict';

const path = require('path');
const grpc = require('@grpc/grpc-js');
const loader = require('@grpc/proto-loader');

const [address, protos] = process.argv.slice(2);
const options = { includeDirs: [protos], keepCase: true, longs: Number, enums: String, defaults: true, oneofs: true };

function load(file) {
  return grpc.loadPackageDefinition(loader.loadSync(path.join(protos, file), options));
}

function call(client, method, request) {
  return new Promise((resolve, reject) => {
    const deadline = new Date(Date.now() + 10000);
    client[method](request, { deadline }, (error, answer) => (error ? reject(error) : resolve(answer)));
  });
}

// Opens a stream and sends a request per model; resolves with every answer and the error that ended it, if any did.
function stream(client, models, metadata, deadline, { cancelAfter = Infinity } = {}) {
  return new Promise((resolve) => {
    const answers = [];
    const call = client.ModelStreamInfer(metadata, { deadline: new Date(Date.now() + deadline) });
    let code = 0;
    call.on('data', (answer) => {
      answers.push({ id: answer.infer_response ? answer.infer_response.id : '', error: answer.error_message });
      if (answers.length === cancelAfter) call.cancel();
    });
    call.on('error', (error) => { code = error.code; });
    call.on('status', (status) => resolve({ answers, code: code || status.code }));
    models.forEach((model, index) => call.write({
      model_name: model,
      id: String(index),
      inputs: [{ name: 'x', datatype: 'FP32', shape: [1, 16], contents: { fp32_contents: Array(16).fill(1) } }],
    }));
    if (deadline > 1000 && cancelAfter === Infinity) call.end();
  });
}

async function main() {
  const credentials = grpc.credentials.createInsecure();
  const inference = new (load('penstock/oip/inference.proto').inference.GRPCInferenceService)(address, credentials);
  const management = load('penstock/v1/models.proto').penstock.v1;
  const models = new management.ModelService(address, credentials);
  const cluster = new (load('penstock/v1/cluster.proto').penstock.v1.ClusterService)(address, credentials);

  const live = await call(inference, 'ServerLive', {});
  const values = Array.from({ length: 16 }, (_, index) => index);
  const inferred = await call(inference, 'ModelInfer', {
    model_name: 'add1',
    id: 'from-node',
    inputs: [{ name: 'x', datatype: 'FP32', shape: [1, 16], contents: { fp32_contents: values } }],
  });
  const raw = inferred.raw_output_contents[0];
  const answer = values.map((_, index) => raw.readFloatLE(index * 4));
  const listed = await call(models, 'ListModels', { query: 'add1' });
  const status = await call(cluster, 'GetStatus', { name: 'add1' });
  const models20 = Array.from({ length: 20 }, (_, index) => (index === 7 ? 'nobody' : 'add1'));
  const open = await stream(inference, models20, new grpc.Metadata(), 10000);
  const strictly = new grpc.Metadata();
  strictly.set('triton_grpc_error', 'true');
  const strict = await stream(inference, ['add1', 'nobody', 'add1'], strictly, 10000);
  const late = await stream(inference, ['add1'], new grpc.Metadata(), 500);
  const cancelled = await stream(inference, ['add1'], new grpc.Metadata(), 10000, { cancelAfter: 1 });
  const missing = await call(models, 'GetVersion', { name: 'nobody' }).catch((error) => error);

  console.log(JSON.stringify({
    live: live.live,
    id: inferred.id,
    answer,
    models: listed.models.map((model) => model.name),
    ready: status.status.versions[0].ready,
    open,
    strict,
    late: { count: late.answers.length, code: late.code },
    cancelled: { count: cancelled.answers.length, code: cancelled.code },
    missing: { code: missing.code, details: missing.details },
  }));
}

main().then(() => process.exit(0), (error) => { console.error(error); process.exit(1); });
