-- What it does: releases open attempts of a worker that the worker does not know.
-- Returns: how many attempts were released.
-- Locks: as settle().
-- Why: when the connection breaks between the COMMIT of a claim and its answer, the tasks are claimed and nobody runs
--   them while their worker lives. Called between two claims, never beside one. The calls were never sent, so the
--   grants are refunded.
create or replace function llmqueue.release_unknown_claims(p_worker uuid, p_known bigint[])
returns integer language plpgsql volatile
security definer set search_path = pg_catalog, pg_temp as $$
declare
    v_items jsonb;
begin
    perform set_config('search_path', llmqueue_internal.owners_path(), true);   -- until this function ends
    select jsonb_agg(jsonb_build_object('verb', 'release', 'fence', a.fence, 'task_id', a.task_id,
                                        'error_class', 'claim_answer_lost'))
      into v_items
      from llmqueue.attempt a
     where a.worker = p_worker and a.ended_at is null and a.fence <> all (p_known);
    if v_items is null then
        return 0;
    end if;
    perform llmqueue.settle(p_worker, v_items);
    return jsonb_array_length(v_items);
end
$$;
comment on function llmqueue.release_unknown_claims is
    'Releases attempts of a worker that the worker does not know. For workers.';
