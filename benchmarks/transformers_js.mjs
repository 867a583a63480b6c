// An export as transformers.js runs it on CPU, against `mtmeta predict`: texts, or pairs of which none is cut.
//
//   npm install --ignore-scripts @huggingface/transformers@4.3.2
//   mtmeta export RUN --format text-classification --int8 row      # of a run with head: hf and precision: fp32
//   mtmeta predict RUN --task TASK --input TEXTS --output answers.jsonl
//   node benchmarks/transformers_js.mjs EXPORT TASK TEXTS answers.jsonl
//
// TEXTS has a text in a line, or two with a tab between them. EXPORT is the folder that holds a folder of each task.
import fs from "fs";
import path from "path";
import { createRequire } from "module";
import { pathToFileURL } from "url";

const found = createRequire(path.join(process.cwd(), "here.js")).resolve("@huggingface/transformers");
const { AutoModelForSequenceClassification, AutoTokenizer, env, softmax } = await import(pathToFileURL(found));
const [folder, task, texts, answers] = process.argv.slice(2);
env.allowRemoteModels = false;
env.localModelPath = path.resolve(folder) + "/";

const lines = (file) => fs.readFileSync(file, "utf8").trimEnd().split("\n");
const rows = lines(texts).map((line) => line.split("\t"));
const wanted = lines(answers).map(JSON.parse);
const tokenizer = await AutoTokenizer.from_pretrained(task);
const encode = (part) => [part.map((row) => row[0]), part[0].length > 1 ? { text_pair: part.map((row) => row[1]) } : {}];
for (const dtype of ["fp32", "q8"]) {
  const model = await AutoModelForSequenceClassification.from_pretrained(task, { dtype });
  let [worst, compared, others] = [0, 0, 0];
  for (let at = 0; at < rows.length; at += 32) {
    const [first, more] = encode(rows.slice(at, at + 32));
    const { logits } = await model(tokenizer(first, { ...more, padding: true, truncation: true }));
    logits.tolist().forEach((row, place) => {
      const [one, option] = encode(rows.slice(at + place, at + place + 1));
      if (tokenizer(one, option).input_ids.dims[1] > tokenizer.config.model_max_length) return;
      const { label, probabilities } = wanted[at + place];
      const chances = softmax(row);
      const names = chances.map((_, number) => model.config.id2label[number]);
      compared += 1;
      others += names[chances.indexOf(Math.max(...chances))] !== String(label);
      chances.forEach((chance, number) => (worst = Math.max(worst, Math.abs(chance - probabilities[names[number]]))));
    });
  }
  console.log(`${task} ${dtype}: ${compared} of ${rows.length} not cut, probabilities differ by ${worst.toExponential(1)}, ${others} other labels`);
}
