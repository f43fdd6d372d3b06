// Graphile Worker in an environment of its own: `fill DSN N` installs it and adds N jobs, `work DSN [batched]` runs them.
// `batched`: local queue and batched completion, as in its own performance test.
import { Logger, run, runMigrations } from "graphile-worker";
import pg from "pg";

const [verb, connectionString, last] = process.argv.slice(2);

if (verb === "fill") {
  await runMigrations({ connectionString });
  const client = new pg.Client({ connectionString });
  await client.connect();
  await client.query(
    `select graphile_worker.add_jobs(array(select json_populate_record(null::graphile_worker.job_spec, '{"identifier": "noop"}')
       from generate_series(1, $1::int)))`,
    [Number(last)],
  );
  await client.end();
} else {
  let hasBegun = false;
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
      noop() {
        if (!hasBegun) {
          hasBegun = true;
          console.log(Date.now() / 1000);
        }
      },
    },
  });
}
