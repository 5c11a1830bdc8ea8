-- What an attempt writes. Each call locks the trial's claim and compares the token: who finds another one there, or none,
-- gets nothing written. Each may be called again when the answer was lost: what is done is found done.

-- Whether the attempt may write to the trial; it then stays so until the end of the transaction.
create or replace function mammography.holds(p_trial int, p_token uuid) returns boolean language plpgsql as $$
begin
    perform 1 from mammography.claim where trial_id = p_trial and token = p_token for update;
    if not found then
        return false;
    end if;
    -- A script of Optuna's own may have told the trial, or may be about to.
    perform 1 from trials where trial_id = p_trial and state = 'RUNNING' for update;
    return found;
end $$;

-- Show life. Only the claim is locked: the next beat is soon.
create or replace function mammography.beat(p_trial int, p_token uuid) returns boolean language plpgsql as $$
begin
    update mammography.claim set heartbeat_at = clock_timestamp() where trial_id = p_trial and token = p_token;
    return found;
end $$;

-- End an attempt and let its claim go. Called with the claim locked.
-- p_died: the trial's worker died or gave up; after three such attempts in a row without an epoch the trial fails for good,
-- with p_reason. But a trial that is trained to its end does not: what its workers died over is what comes after.
create or replace function mammography.let_go(
    p_trial int, p_token uuid, p_ending text, p_at timestamptz, p_died boolean,
    p_reason text default 'three attempts in a row died without finishing an epoch'
)
returns void language plpgsql as $$
declare
    v_barren int;
begin
    update mammography.attempt set ended_at = greatest(started_at, p_at), ending = p_ending where token = p_token;
    update mammography.claim
    set token = null,
        barren = case
            when not p_died then barren
            when exists (select from mammography.epoch e where e.token = p_token)
              or exists (select from mammography.fold f where f.token = p_token) then 0
            when (select count(*) from mammography.fold f where f.trial_id = p_trial)
              >= (select (s.resolved -> 'cv' ->> 'folds')::int from mammography.study s where s.study_id = claim.study_id)
              then barren
            else barren + 1
        end
    where trial_id = p_trial returning barren into v_barren;
    if p_died and v_barren >= 3 then
        perform mammography.detach(p_trial);  -- what it says of another end: whoever is idle says how it ended
        update trials set state = 'FAIL', datetime_complete = timezone('utc', clock_timestamp())
        where trial_id = p_trial and state = 'RUNNING';
        insert into trial_user_attributes (trial_id, key, value_json)
        values (p_trial, 'reason', to_json(p_reason)::text)
        on conflict (trial_id, key) do nothing;
    end if;
end $$;

-- Store what decides the bits of the trial, unless an earlier attempt did; return it with whether the claim holds.
create or replace function mammography.settle_resolution(
    p_trial int, p_token uuid, p_resolution jsonb, p_device_kind text, out held boolean, out stored jsonb
) language plpgsql as $$
begin
    held := mammography.holds(p_trial, p_token);
    if held then
        update mammography.claim
        set resolution = coalesce(resolution, p_resolution),
            device_kind = case when coalesce(resolution, p_resolution) is null then device_kind else coalesce(device_kind, p_device_kind) end
        where trial_id = p_trial returning resolution into stored;
    end if;
end $$;

-- Store all parameters at once, the way Optuna does. p_params: name, value (internal), distribution (JSON as text) of each.
-- outcome: stored; there (the trial has parameters); taken (another trial of the study has the same); gone
create or replace function mammography.settle_parameters(p_trial int, p_token uuid, p_configuration text, p_params jsonb)
returns text language plpgsql as $$
begin
    if not mammography.holds(p_trial, p_token) then
        return 'gone';
    elsif exists (select from trial_params where trial_id = p_trial) then
        return 'there';
    end if;
    update mammography.claim set configuration = p_configuration where trial_id = p_trial;
    insert into trial_params (trial_id, param_name, param_value, distribution_json)
    select p_trial, name, value, distribution
    from jsonb_to_recordset(p_params) as p (name text, value double precision, distribution text);
    return 'stored';
exception when unique_violation then
    return 'taken';
end $$;

-- Record that an epoch is finished and saved: the trial advances. An epoch of score null has none.
create or replace function mammography.advance(
    p_trial int, p_token uuid, p_fold int, p_epoch int, p_score double precision, p_seconds double precision,
    p_images_per_second double precision
) returns boolean language plpgsql as $$
begin
    if not mammography.holds(p_trial, p_token) then
        return false;
    end if;
    update mammography.claim
    set heartbeat_at = clock_timestamp(), fold = p_fold, epoch = p_epoch, images_per_second = p_images_per_second, barren = 0
    where trial_id = p_trial;
    insert into mammography.epoch (trial_id, fold, epoch, token, score, seconds, images_per_second)
    values (p_trial, p_fold, p_epoch, p_token, p_score, p_seconds, p_images_per_second)
    on conflict do nothing;
    return true;
end $$;

-- Record an epoch that an earlier attempt saved and died before it could say so, unless it did.
create or replace function mammography.resume(
    p_trial int, p_token uuid, p_fold int, p_epoch int, p_score double precision, p_seconds double precision,
    p_images_per_second double precision
) returns boolean language plpgsql as $$
begin
    if not mammography.holds(p_trial, p_token) then
        return false;
    end if;
    update mammography.claim set fold = p_fold, epoch = p_epoch, images_per_second = p_images_per_second
    where trial_id = p_trial;
    if not exists (select from mammography.epoch where trial_id = p_trial and fold = p_fold and epoch = p_epoch) then
        insert into mammography.epoch (trial_id, fold, epoch, token, score, seconds, images_per_second)
        select p_trial, p_fold, p_epoch, coalesce(
                   (select token from mammography.attempt where trial_id = p_trial and token <> p_token order by number desc limit 1),
                   p_token),
               p_score, p_seconds, p_images_per_second;
        update mammography.claim set barren = 0 where trial_id = p_trial;
    end if;
    return true;
end $$;

-- Settle the number of a fold, and report it to Optuna: its step is the fold.
create or replace function mammography.publish_fold(p_trial int, p_token uuid, p_fold int, p_score double precision, p_files jsonb)
returns boolean language plpgsql as $$
begin
    if not mammography.holds(p_trial, p_token) then
        return false;
    end if;
    insert into mammography.fold (trial_id, fold, token, score, files)
    values (p_trial, p_fold, p_token, p_score, p_files) on conflict do nothing;
    if found then
        insert into trial_intermediate_values (trial_id, step, intermediate_value, intermediate_value_type)
        values (p_trial, p_fold, p_score, 'FINITE');
    end if;
    return true;
end $$;

-- Tell Optuna how the trial ended, and let the claim go. p_state: Optuna's name of it.
create or replace function mammography.finish(
    p_trial int, p_token uuid, p_ending text, p_state text, p_value double precision, p_attributes jsonb, p_spends_budget boolean
) returns boolean language plpgsql as $$
begin
    if not mammography.holds(p_trial, p_token) then
        -- ended by this very attempt: the answer to an earlier call was lost
        return exists (select from mammography.attempt where token = p_token and ending = p_ending);
    end if;
    if p_value is not null then
        insert into trial_values (trial_id, objective, value, value_type) values (p_trial, 0, p_value, 'FINITE');
    end if;
    insert into trial_user_attributes (trial_id, key, value_json)
    select p_trial, key, value::text from jsonb_each(p_attributes)
    on conflict (trial_id, key) do update set value_json = excluded.value_json;
    -- A failure that was not the configuration's fault leaves it to be tried again, under another number.
    update mammography.claim
    set spends_budget = p_spends_budget, configuration = case when p_spends_budget then configuration end
    where trial_id = p_trial;
    update trials set state = p_state::trialstate, datetime_complete = timezone('utc', clock_timestamp())
    where trial_id = p_trial;
    perform mammography.let_go(p_trial, p_token, p_ending, clock_timestamp(), false);
    return true;
end $$;

-- Give an unfinished trial back: another worker may take it up at once.
create or replace function mammography.release(p_trial int, p_token uuid, p_ending text, p_died boolean, p_reason text)
returns boolean language plpgsql as $$
begin
    if not mammography.holds(p_trial, p_token) then
        return exists (select from mammography.attempt where token = p_token and ending = p_ending);
    end if;
    perform mammography.let_go(
        p_trial, p_token, p_ending, clock_timestamp(), p_died,
        coalesce(p_reason, 'three attempts in a row died without finishing an epoch')
    );
    return true;
end $$;
