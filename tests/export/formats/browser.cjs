// Runs an ONNX file in onnxruntime-web: node browser.cjs MODEL INPUT SHAPE OUTPUT, with float32 values in the files.
const fs = require("fs");
const ort = require("onnxruntime-web");

async function main(model, input, shape, output) {
  ort.env.wasm.numThreads = 1;
  const session = await ort.InferenceSession.create(fs.readFileSync(model), { executionProviders: ["wasm"] });
  const bytes = fs.readFileSync(input);
  const values = new Float32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4);
  const tensor = new ort.Tensor("float32", values, JSON.parse(shape));
  const results = await session.run({ [session.inputNames[0]]: tensor });
  fs.writeFileSync(output, Buffer.from(results[session.outputNames[0]].data.buffer));
}

main(...process.argv.slice(2)).then(() => process.exit(0), (error) => { console.error(error); process.exit(1); });
