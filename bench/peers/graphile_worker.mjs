// Graphile Worker in its own environment: `fill DSN N` installs it and adds N jobs, `trickle DSN N` adds N one by one,
// `work DSN [batched]` runs them and `wait DSN [batched]` those of a trickle. `batched`: local queue and batched
// completion, as in its own performance test. It prints the same lines as say.py.
import { setTimeout } from "node:timers/promises";
import { Logger, run, runMigrations } from "graphile-worker";
import pg from "pg";

const EVERY = 100; // jobs
const GAP_MS = 20;
const [verb, connectionString, last] = process.argv.slice(2);

async function connect() {
  const client = new pg.Client({ connectionString });
  await client.connect();
  return client;
}

if (verb === "fill") {
  await runMigrations({ connectionString });
  const client = await connect();
  for (let left = Number(last); left > 0; left -= 100_000) {
    await client.query(
      `select graphile_worker.add_jobs(array(select json_populate_record(null::graphile_worker.job_spec, '{"identifier": "noop"}')
         from generate_series(1, $1::int)))`,
      [Math.min(100_000, left)],
    );
  }
  await client.end();
} else if (verb === "trickle") {
  const client = await connect();
  for (let job = 0; job < Number(last); job += 1) {
    const addedAt = performance.timeOrigin + performance.now();
    await client.query("select graphile_worker.add_job('noop', json_build_object('addedAt', $1::float8))", [addedAt]);
    await setTimeout(GAP_MS);
  }
  await client.end();
} else {
  let jobs = 0;
  const worker = { connectionString, concurrentJobs: 24, maxPoolSize: 25 };
  if (last === "batched") {
    Object.assign(worker, {
      localQueue: { size: 500, refetchDelay: { durationMs: 10 } },
      completeJobBatchDelay: 0,
      failJobBatchDelay: 0,
    });
  }
  await run({
    preset: { worker: { ...worker, logger: new Logger(() => () => {}) } },
    logger: new Logger(() => () => {}),
    taskList: {
      noop({ addedAt }) {
        if (verb === "wait") {
          console.log((performance.timeOrigin + performance.now() - addedAt) / 1000);
        } else if (jobs % EVERY === 0) {
          console.log(Date.now() / 1000);
        }
        jobs += 1;
      },
    },
  });
}
