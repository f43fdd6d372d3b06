-- What it does: notes what the models of each shared pool were served, for the next share_out().
-- Returns: {lane: {model: tasks served / weight, the least of them being 0}}.
-- Locks: none.
-- Why: a model that had no capacity keeps no credit for it: it is set to the least of the others, so that it does not
--   take everything when it is back (start-time fair queueing).
create or replace function llmqueue_internal.note_served(
    p_served jsonb, p_shares jsonb, p_left jsonb, p_refusals llmqueue_internal.claim_row[])
returns jsonb language plpgsql immutable as $$
declare
    v_full text[] := array(select v.model from unnest(p_refusals) v where v.reason not in ('empty', 'contended'));
    v_served jsonb := coalesce(p_served, '{}');
    v_lane record;
    v_models record;
begin
    for v_lane in select s.key as lane, s.value -> 'models' as models from jsonb_each(p_shares) s loop
        with now_served as (
            select m.model,
                   coalesce((v_served #>> array[v_lane.lane, m.model])::double precision, 0)
                   + coalesce(((v_lane.models #>> array[m.model, 'tasks'])::integer
                               - (p_left #>> array[v_lane.lane, 'models', m.model, 'tasks'])::integer)
                              / (v_lane.models #>> array[m.model, 'weight'])::double precision, 0) as served,
                   v_lane.models ? m.model and m.model <> all (v_full) as has_room
              from (select jsonb_object_keys(v_lane.models) as model
                    union select jsonb_object_keys(coalesce(v_served -> v_lane.lane, '{}'))) m
        ), lifted as (
            select n.model, greatest(n.served, case when not n.has_room then (
                       select min(o.served) from now_served o where o.has_room) end) as served
              from now_served n
        )
        select jsonb_object_agg(l.model, l.served - (select min(x.served) from lifted x)) as served into v_models
            from lifted l;
        v_served := v_served || jsonb_build_object(v_lane.lane, v_models.served);
    end loop;
    return v_served;
end
$$;
