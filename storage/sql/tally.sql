-- How far a study is. Exact under the study row's lock; a glance without it.
create or replace function mammography.tally(
    p_study int,
    out trials int, out spent int, out running int, out waiting int, out configurations int,
    out busy_s double precision, out gpu_s double precision
) language plpgsql stable as $$
declare
    settled mammography.settled;
    busy tstzmultirange;
    -- Between two trials a worker looks for the next one, and is at work; without it each pause would be kept as a gap.
    slack constant interval := '10 seconds';
begin
    select * into settled from mammography.settled where study_id = p_study;
    select settled.trials + count(*),
           settled.spent + count(*) filter (where t.state in ('COMPLETE', 'PRUNED', 'FAIL') and coalesce(c.spends_budget, true)),
           count(*) filter (where t.state = 'RUNNING'),
           count(*) filter (where t.state = 'WAITING'),
           -- one that runs and has no parameters yet will take one
           settled.configurations + count(*) filter (where c.configuration is not null or t.state = 'RUNNING')
    into trials, spent, running, waiting, configurations
    from trials t left join mammography.claim c using (trial_id)
    where t.study_id = p_study and t.trial_id > settled.trial_id;

    select settled.busy + coalesce(range_agg(tstzrange(a.started_at, coalesce(a.ended_at, clock_timestamp()) + slack)), '{}'),
           settled.gpu_s + coalesce(sum(a.gpus * extract(epoch from coalesce(a.ended_at, clock_timestamp()) - a.started_at)), 0)
    into busy, gpu_s
    from trials t join mammography.attempt a using (trial_id)
    where t.study_id = p_study and t.trial_id > settled.trial_id;
    select coalesce(sum(extract(epoch from upper(one) - lower(one))), 0) into busy_s from unnest(busy) one;
end $$;

-- Why nothing more may begin in a study: stopped, spent, exhausted; null if something may.
-- A trial counts as soon as it runs, so that the budget is exact.
create or replace function mammography.limit_reached(p_study int) returns text language plpgsql stable as $$
declare
    study mammography.study;
    tally record;
begin
    select * into study from mammography.study where study_id = p_study;
    tally := mammography.tally(p_study);
    return case
        when study.stop_reason is not null then 'stopped'
        when tally.spent + tally.running >= study.budget_trials
          or clock_timestamp() >= study.deadline
          or tally.busy_s >= study.budget_hours * 3600
          or tally.gpu_s >= study.budget_gpu_hours * 3600 then 'spent'
        when tally.waiting = 0 and tally.configurations >= study.configurations then 'exhausted'
    end;
end $$;

-- Move the trials that are finished for ever, up to the first that is not, from the tally's rest into what is settled.
-- Called under the study row's lock.
create or replace function mammography.settle(p_study int) returns void language plpgsql as $$
declare
    before int;
    upto int;
begin
    select trial_id into before from mammography.settled where study_id = p_study;
    select min(trial_id) - 1 into upto from trials
    where study_id = p_study and trial_id > before and state in ('RUNNING', 'WAITING');
    if upto is null then
        select max(trial_id) into upto from trials where study_id = p_study and trial_id > before;
    end if;
    if upto is null or not exists (select from trials where study_id = p_study and trial_id > before and trial_id <= upto) then
        return;
    end if;
    update mammography.settled s
    set trial_id = upto, trials = s.trials + n.trials, spent = s.spent + n.spent,
        configurations = s.configurations + n.configurations, busy = s.busy + n.busy, gpu_s = s.gpu_s + n.gpu_s
    from (
        select count(*) as trials, count(*) filter (where coalesce(c.spends_budget, true)) as spent,
               count(c.configuration) as configurations,
               coalesce(range_agg(a.busy), '{}') as busy, coalesce(sum(a.gpu_s), 0) as gpu_s
        from trials t left join mammography.claim c using (trial_id)
        left join lateral (
            select range_agg(tstzrange(started_at, ended_at + interval '10 seconds')) as busy,
                   sum(gpus * extract(epoch from ended_at - started_at)) as gpu_s
            from mammography.attempt where trial_id = t.trial_id and ended_at is not null
        ) a on true
        where t.study_id = p_study and t.trial_id > before and t.trial_id <= upto
    ) n
    where s.study_id = p_study;
end $$;
