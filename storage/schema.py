"""
Our own tables, beside Optuna's and in a PostgreSQL schema of their own.

Optuna's tables say what a trial is; these say who may work on it. A trial whose worker died or gave it back stays RUNNING
for Optuna, with its number and its parameters, and only its claim is free (`claim.token` is null).

Locks are taken in one order, study row, claim row, trial row, so that nobody waits in a circle.
"""

from __future__ import annotations

SCHEMA_VERSION = 1

_TABLES = """
create schema mammography;

create table mammography.schema_version (version int not null);

create table mammography.study (
    study_id      int primary key references studies on delete cascade,
    resolved      json not null,         -- the study file with every default filled in; json keeps the order of the search
    data_hash     text not null,
    folds_hash    text not null,
    folds_csv     text not null,         -- what folds.csv says, so that the folds outlive the folder
    budget_trials int not null check (budget_trials > 0),
    created_at    timestamptz not null default clock_timestamp()
);

create table mammography.claim (         -- one row a trial, for as long as the trial exists
    trial_id      int primary key references trials on delete cascade,
    study_id      int not null references mammography.study on delete cascade,
    token         uuid,                  -- of the attempt that may write to the trial; null: nobody, it is free
    heartbeat_at  timestamptz,
    fold          int,                   -- where the current attempt is
    epoch         int,
    barren        int not null default 0,      -- attempts in a row that died without finishing an epoch
    resolution    jsonb,                 -- what decides the bits, settled by the first attempt
    device_kind   text,                  -- the same, alone: only a worker of this kind may take the trial up
    configuration text,                  -- the parameters, canonical; null where a repetition was wanted
    spends_budget boolean not null default true,
    unique (study_id, configuration)
);
create index on mammography.claim (study_id) where token is not null;

create table mammography.attempt (
    trial_id   int not null references trials on delete cascade,
    number     int not null,             -- from 0
    token      uuid not null unique,
    worker     text not null,
    device     text not null,
    started_at timestamptz not null default clock_timestamp(),
    ended_at   timestamptz,
    ending     text,                     -- complete, pruned, fail, stopped, lost
    epochs     jsonb not null default '{}',    -- fold -> epochs trained in this attempt
    primary key (trial_id, number)
);

create table mammography.fold (          -- a published fold: from here on its number is settled
    trial_id     int not null references trials on delete cascade,
    fold         int not null,
    token        uuid not null references mammography.attempt (token) on delete cascade,
    score        double precision not null,
    files        jsonb not null,         -- name, bytes and sha256 of each
    published_at timestamptz not null default clock_timestamp(),
    primary key (trial_id, fold)
);
"""

_FREE_LOST_CLAIMS = """
-- Free the claims of workers that show no life. Called under the study row's lock.
-- After an outage every heartbeat is old: nothing is lost before one grace period has passed since the server started.
create function mammography.free_lost_claims(p_study int, p_grace interval) returns void language plpgsql as $$
declare
    lost record;
    advanced boolean;
begin
    for lost in
        select c.trial_id, c.token, c.barren, c.heartbeat_at from mammography.claim c
        where c.study_id = p_study and c.token is not null
          and greatest(c.heartbeat_at, pg_postmaster_start_time()) + p_grace < clock_timestamp()
        order by c.trial_id for update skip locked
    loop
        -- When it was last heard of, not when somebody looked, which may be days later.
        update mammography.attempt set ended_at = greatest(started_at, lost.heartbeat_at), ending = 'lost'
        where token = lost.token returning epochs <> '{}' into advanced;
        update mammography.claim set token = null, barren = case when advanced then 0 else lost.barren + 1 end
        where trial_id = lost.trial_id;
        if not advanced and lost.barren + 1 >= 3 then
            update trials set state = 'FAIL', datetime_complete = timezone('utc', clock_timestamp())
            where trial_id = lost.trial_id and state = 'RUNNING';
            insert into trial_user_attributes (trial_id, key, value_json)
            values (lost.trial_id, 'reason', '"three attempts in a row died without finishing an epoch"')
            on conflict (trial_id, key) do nothing;
        end if;
    end loop;
end $$;
"""

_CLAIM_TRIAL = """
-- Claim a trial of a study for a new attempt: repair, count, and take up or create, in one call under one lock.
-- outcome: claimed; wait (others still work on the last trials); spent (the budget is spent, all is finished)
create function mammography.claim_trial(
    p_study int, p_token uuid, p_worker text, p_device text, p_device_kind text, p_grace interval,
    out outcome text, out trial int, out trial_number int, out attempt_number int
) language plpgsql as $$
declare
    budget int;
    finished int;
    running int;
begin
    perform 1 from studies where study_id = p_study for update;
    perform mammography.free_lost_claims(p_study, p_grace);

    select c.trial_id, t.number into trial, trial_number
    from mammography.claim c join trials t using (trial_id)
    where c.study_id = p_study and c.token is null and t.state = 'RUNNING'
      and (c.device_kind is null or c.device_kind = p_device_kind)
    order by t.number limit 1;

    if trial is null then
        select budget_trials into budget from mammography.study where study_id = p_study;
        select count(*) filter (where t.state in ('COMPLETE', 'PRUNED', 'FAIL') and coalesce(c.spends_budget, true)),
               count(*) filter (where t.state = 'RUNNING')
        into finished, running
        from trials t left join mammography.claim c using (trial_id) where t.study_id = p_study;
        if finished + running >= budget then
            outcome := case when running = 0 then 'spent' else 'wait' end;
            return;
        end if;
        select t.trial_id, t.number into trial, trial_number
        from trials t where t.study_id = p_study and t.state = 'WAITING' order by t.number limit 1 for update;
        if trial is not null then
            update trials set state = 'RUNNING', datetime_start = timezone('utc', clock_timestamp())
            where trial_id = trial;
        else
            select count(*) into trial_number from trials t where t.study_id = p_study;
            insert into trials (number, study_id, state, datetime_start)
            values (trial_number, p_study, 'RUNNING', timezone('utc', clock_timestamp()))
            returning trial_id into trial;
        end if;
        insert into mammography.claim (trial_id, study_id) values (trial, p_study);
    end if;

    update mammography.claim
    set token = p_token, heartbeat_at = clock_timestamp(), fold = null, epoch = null where trial_id = trial;
    select count(*) into attempt_number from mammography.attempt a where a.trial_id = trial;
    insert into mammography.attempt (trial_id, number, token, worker, device)
    values (trial, attempt_number, p_token, p_worker, p_device);
    outcome := 'claimed';
end $$;
"""

_VERSION = f"insert into mammography.schema_version values ({SCHEMA_VERSION});"  # noqa: S608 - a constant of ours

SCHEMA = _TABLES + _FREE_LOST_CLAIMS + _CLAIM_TRIAL + _VERSION
"""Run once on a database that holds Optuna's tables."""
