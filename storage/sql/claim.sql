-- Free what dead workers hold, and take in what dead scripts left. Called under the study row's lock.
-- After an outage every heartbeat is old: nothing is lost before one grace period has passed since the server started.
create or replace function mammography.repair(p_study int, p_grace interval) returns void language plpgsql as $$
declare
    lost record;
    orphan record;
    anew int;
    settled int;
begin
    for lost in
        select c.trial_id, c.token, c.heartbeat_at from mammography.claim c
        where c.study_id = p_study and c.token is not null
          and greatest(c.heartbeat_at, pg_postmaster_start_time()) + p_grace < clock_timestamp()
        order by c.trial_id for update skip locked
    loop
        -- When it was last heard of, not when somebody looked, which may be days later.
        perform mammography.let_go(lost.trial_id, lost.token, 'lost', lost.heartbeat_at, true);
    end loop;

    -- A trial that a script of Optuna's own began, and of which nothing was heard for a grace period. Such a script dies
    -- between its writes, and what it has written is half a configuration: it is proposed anew, under the same number. But in
    -- another row, so that a script which was only slow finds its trial gone and cannot tell a value of other parameters.
    select trial_id into settled from mammography.settled where study_id = p_study;
    for orphan in
        select t.trial_id from trials t
        where t.study_id = p_study and t.trial_id > settled and t.state = 'RUNNING'
          and not exists (select from mammography.claim c where c.trial_id = t.trial_id)
          and greatest(
                  t.datetime_start at time zone 'UTC', pg_postmaster_start_time(),
                  (select max(h.heartbeat) at time zone 'UTC' from trial_heartbeats h where h.trial_id = t.trial_id)
              ) + p_grace < clock_timestamp()
        for update skip locked
    loop
        insert into trials (number, study_id, state, datetime_start)
        select number, study_id, 'RUNNING', datetime_start from trials where trial_id = orphan.trial_id
        returning trial_id into anew;
        update trial_system_attributes set trial_id = anew where trial_id = orphan.trial_id;
        update trial_user_attributes set trial_id = anew where trial_id = orphan.trial_id;
        delete from trial_params where trial_id = orphan.trial_id;
        delete from trial_values where trial_id = orphan.trial_id;
        delete from trial_intermediate_values where trial_id = orphan.trial_id;
        delete from trial_heartbeats where trial_id = orphan.trial_id;
        delete from trials where trial_id = orphan.trial_id;
        insert into mammography.claim (trial_id, study_id) values (anew, p_study);
    end loop;
end $$;

-- The same for a launcher, which claims nothing.
create or replace function mammography.repair_alone(p_study int, p_grace interval) returns void language plpgsql as $$
begin
    perform 1 from studies where study_id = p_study for update;
    if found then
        perform mammography.repair(p_study, p_grace);
    end if;
end $$;

-- Claim a trial of a study for a new attempt: repair, count, and take up or create, in one call under one lock.
-- p_repair: false for a worker that was cut off a moment ago itself, since everybody else may have been too.
-- A trial that three workers had to leave over is taken up last: what they could not do, this one may not be able to either.
-- outcome: claimed; lost (this very token was given a trial, and lost it before the answer arrived); wait (others still work
-- on the last trials); device (what is left was begun on another kind of device); else why nothing will ever come: spent,
-- exhausted, stopped, deleted
create or replace function mammography.claim_trial(
    p_study int, p_token uuid, p_worker text, p_device text, p_device_kind text, p_gpus double precision,
    p_environment jsonb, p_grace interval, p_repair boolean,
    out outcome text, out trial int, out trial_number int, out attempt_number int
) language plpgsql as $$
declare
    settled int;
    left_by int;
    limit_reached text;
begin
    select c.trial_id, t.number, a.number into trial, trial_number, attempt_number
    from mammography.attempt a join mammography.claim c using (token) join trials t on t.trial_id = c.trial_id
    where a.token = p_token;
    if found then  -- the answer to an earlier call was lost
        outcome := 'claimed';
        return;
    elsif exists (select from mammography.attempt a where a.token = p_token) then
        outcome := 'lost';
        return;
    end if;

    perform 1 from studies where study_id = p_study for update;
    if not found then
        outcome := 'deleted';
        return;
    end if;
    if p_repair then
        perform mammography.repair(p_study, p_grace);
    end if;
    perform mammography.settle(p_study);

    select trial_id into settled from mammography.settled where study_id = p_study;
    select t.trial_id, t.number, left_over.times into trial, trial_number, left_by
    from trials t join mammography.claim c using (trial_id)
    cross join lateral (
        select count(*) as times from mammography.attempt a where a.trial_id = t.trial_id and a.ending = 'left'
    ) left_over
    where t.study_id = p_study and t.trial_id > settled and t.state = 'RUNNING' and c.token is null
      and (c.device_kind is null or c.device_kind = p_device_kind)
    order by left_over.times >= 3, t.trial_id limit 1;
    limit_reached := mammography.limit_reached(p_study);

    if trial is null or (left_by >= 3 and limit_reached is null) then
        if limit_reached is not null then
            select case
                when count(*) = 0 then limit_reached
                when count(*) filter (where c.token is not null or c.device_kind is null) = 0 then 'device'
                else 'wait'
            end into outcome
            from trials t left join mammography.claim c using (trial_id)
            where t.study_id = p_study and t.trial_id > settled and t.state = 'RUNNING';
            return;
        end if;
        select t.trial_id, t.number into trial, trial_number from trials t
        where t.study_id = p_study and t.trial_id > settled and t.state = 'WAITING'
        order by t.trial_id limit 1 for update;
        if trial is not null then
            update trials set state = 'RUNNING', datetime_start = timezone('utc', clock_timestamp())
            where trial_id = trial;
        else
            trial_number := (mammography.tally(p_study)).trials;
            insert into trials (number, study_id, state, datetime_start)
            values (trial_number, p_study, 'RUNNING', timezone('utc', clock_timestamp()))
            returning trial_id into trial;
        end if;
        insert into mammography.claim (trial_id, study_id) values (trial, p_study) on conflict do nothing;
    end if;

    update mammography.claim
    set token = p_token, heartbeat_at = clock_timestamp(), fold = null, epoch = null, images_per_second = null
    where trial_id = trial;
    select count(*) into attempt_number from mammography.attempt a where a.trial_id = trial;
    if attempt_number > 0 then
        perform mammography.detach(trial);  -- what an earlier attempt said of an end that it did not reach
    end if;
    insert into mammography.attempt (trial_id, number, token, worker, device, gpus, environment)
    values (trial, attempt_number, p_token, p_worker, p_device, p_gpus, p_environment);
    outcome := 'claimed';
end $$;
