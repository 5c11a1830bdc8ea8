-- Our own tables, beside Optuna's and in a PostgreSQL schema of their own.
--
-- Optuna's tables say what a trial is; these say who may work on it. A trial whose worker died or gave it back stays
-- RUNNING for Optuna, with its number and its parameters, and only its claim is free (claim.token is null).
--
-- Locks are taken in one order, study row, claim row, trial row, so that nobody waits in a circle. Every function that a
-- worker calls is one statement in a transaction of its own: a worker that is frozen never holds a lock.

create schema mammography;

create table mammography.schema_version (version int not null);

create table mammography.study (
    study_id         int primary key references studies on delete cascade,
    resolved         json not null,      -- the study file with every default filled in; json keeps the order of the search
    data_hash        text not null,
    folds_hash       text not null,
    folds_csv        text not null,      -- what folds.csv says, so that the folds outlive the folder
    budget_trials    int check (budget_trials > 0),
    budget_hours     double precision check (budget_hours > 0),      -- with at least one worker at work
    budget_gpu_hours double precision check (budget_gpu_hours > 0),
    deadline         timestamptz,        -- nothing begins after it
    configurations   int check (configurations > 0),                 -- of a finite space
    stop_reason      text,               -- why nothing begins any more whatever the budget: asked, plateau
    created_at       timestamptz not null default clock_timestamp()
);

-- The trials up to `trial_id` are finished for ever and counted here, so that a claim looks at the few after them.
create table mammography.settled (
    study_id       int primary key references mammography.study on delete cascade,
    trial_id       int not null default 0,
    trials         int not null default 0,
    spent          int not null default 0,
    configurations int not null default 0,
    busy           tstzmultirange not null default '{}',   -- when anybody worked on them
    gpu_s          double precision not null default 0
);

create table mammography.claim (         -- one row a trial, for as long as the trial exists
    trial_id          int primary key references trials on delete cascade,
    study_id          int not null references mammography.study on delete cascade,
    token             uuid,              -- of the attempt that may write to the trial; null: nobody, it is free
    heartbeat_at      timestamptz,
    fold              int,               -- where the current attempt is
    epoch             int,
    images_per_second double precision,
    barren            int not null default 0,      -- attempts in a row that died without finishing an epoch
    resolution        jsonb,             -- what decides the bits, settled by the first attempt
    device_kind       text,              -- the same, alone: only a worker of this kind may take the trial up
    configuration     text,              -- the parameters, canonical; null where a repetition was wanted
    spends_budget     boolean not null default true,
    unique (study_id, configuration)
);
create index on mammography.claim (study_id) where token is not null;

create table mammography.attempt (
    trial_id    int not null references trials on delete cascade,
    number      int not null,            -- from 0
    token       uuid not null unique,
    worker      text not null,
    device      text not null,
    gpus        double precision not null,         -- share of a GPU that it holds; 0 on the processor
    environment jsonb not null,          -- versions and commit that it runs with
    started_at  timestamptz not null default clock_timestamp(),
    ended_at    timestamptz,
    ending      text,                    -- complete, pruned, fail, stopped, left, hung, lost
    primary key (trial_id, number)
);

create table mammography.epoch (         -- a finished and saved epoch, by the attempt that trained it
    trial_id          int not null references trials on delete cascade,
    fold              int not null,
    epoch             int not null,
    token             uuid not null references mammography.attempt (token) on delete cascade,
    score             double precision,  -- balanced accuracy adjusted on the validation images; null where it does not exist
    seconds           double precision not null,
    images_per_second double precision not null,
    finished_at       timestamptz not null default clock_timestamp(),
    primary key (trial_id, fold, epoch, token)
);
create index on mammography.epoch (token);

create table mammography.fold (          -- a published fold: from here on its number is settled
    trial_id     int not null references trials on delete cascade,
    fold         int not null,
    token        uuid not null references mammography.attempt (token) on delete cascade,
    score        double precision not null,
    files        jsonb not null,         -- name, bytes and sha256 of each
    published_at timestamptz not null default clock_timestamp(),
    primary key (trial_id, fold)
);
create index on mammography.fold (token);

-- On Optuna's table: without it a look at the last few trials of a study reads all of them.
create index mammography_trials_of_study on trials (study_id, trial_id);
