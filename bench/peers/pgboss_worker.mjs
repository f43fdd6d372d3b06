// pg-boss in its own environment: `fill DSN N` installs it and adds N jobs, `work DSN` runs them.
// Configured as its documentation recommends for throughput: large batches, and the next one at once after a full one.
import { PgBoss } from "pg-boss";

const [verb, connectionString, jobs] = process.argv.slice(2);
const boss = new PgBoss({ connectionString });
boss.on("error", console.error);
await boss.start();

if (verb === "fill") {
  await boss.createQueue("noop");
  for (let left = Number(jobs); left > 0; left -= 10_000) {
    await boss.insert("noop", Array.from({ length: Math.min(10_000, left) }, () => ({})));
  }
  await boss.stop();
} else {
  let hasBegun = false;
  const options = {
    batchSize: 500,
    pollingIntervalSeconds: 0.5,
    burstWhenBatchFull: true,
    localConcurrency: 2,
  };
  await boss.work("noop", options, async () => {
    if (!hasBegun) {
      hasBegun = true;
      console.log(Date.now() / 1000);
    }
  });
}
