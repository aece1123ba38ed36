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
  const missing = await call(models, 'GetVersion', { name: 'nobody' }).catch((error) => error);

  console.log(JSON.stringify({
    live: live.live,
    id: inferred.id,
    answer,
    models: listed.models.map((model) => model.name),
    ready: status.status.versions[0].ready,
    missing: { code: missing.code, details: missing.details },
  }));
}

main().then(() => process.exit(0), (error) => { console.error(error); process.exit(1); });
