-- What people change in a study while it runs.

-- Queue a configuration. p_fixed: values by name, as Optuna's own queue stores them; p_configuration: the same, canonical,
-- if it is a whole configuration, which is thereby taken. twin: the trial that has it already; then nothing is queued.
create or replace function mammography.enqueue(p_study int, p_fixed text, p_configuration text, out number int, out twin int)
language plpgsql as $$
declare
    v_trial int;
begin
    perform 1 from studies where study_id = p_study for update;
    select t.number into twin from mammography.claim c join trials t using (trial_id)
    where c.study_id = p_study and c.configuration = p_configuration;
    if twin is not null then
        return;
    end if;
    select count(*) into number from trials t where t.study_id = p_study;
    insert into trials (number, study_id, state) values (number, p_study, 'WAITING') returning trial_id into v_trial;
    insert into trial_system_attributes (trial_id, key, value_json) values (v_trial, 'fixed_params', p_fixed);
    insert into mammography.claim (trial_id, study_id, configuration) values (v_trial, p_study, p_configuration);
end $$;

-- Add a finished trial of another study, with its fold scores: the sampler and pruning learn from it, the budget does not
-- pay for it. p_params as in settle_parameters. Nothing is added, and null returned, if a trial has this configuration.
create or replace function mammography.add_finished(
    p_study int, p_state text, p_value double precision, p_configuration text, p_params jsonb, p_scores jsonb, p_attributes jsonb
) returns int language plpgsql as $$
declare
    v_trial int;
    v_number int;
begin
    perform 1 from studies where study_id = p_study for update;
    select count(*) into v_number from trials t where t.study_id = p_study;
    insert into trials (number, study_id, state, datetime_start, datetime_complete)
    values (v_number, p_study, p_state::trialstate, timezone('utc', clock_timestamp()), timezone('utc', clock_timestamp()))
    returning trial_id into v_trial;
    insert into mammography.claim (trial_id, study_id, configuration, spends_budget)
    values (v_trial, p_study, p_configuration, false);
    insert into trial_params (trial_id, param_name, param_value, distribution_json)
    select v_trial, name, value, distribution
    from jsonb_to_recordset(p_params) as p (name text, value double precision, distribution text);
    insert into trial_intermediate_values (trial_id, step, intermediate_value, intermediate_value_type)
    select v_trial, key::int, value::double precision, 'FINITE' from jsonb_each_text(p_scores);
    if p_value is not null then
        insert into trial_values (trial_id, objective, value, value_type) values (v_trial, 0, p_value, 'FINITE');
    end if;
    insert into trial_user_attributes (trial_id, key, value_json)
    select v_trial, key, value::text from jsonb_each(p_attributes);
    return v_number;
exception when unique_violation then
    return null;
end $$;

-- Give a study more to do; nulls change nothing. A study that was stopped goes on.
create or replace function mammography.extend(p_study int, p_trials int, p_hours double precision, p_gpu_hours double precision, p_deadline timestamptz)
returns void language plpgsql as $$
begin
    perform 1 from studies where study_id = p_study for update;
    update mammography.study
    set budget_trials = budget_trials + coalesce(p_trials, 0), budget_hours = budget_hours + coalesce(p_hours, 0),
        budget_gpu_hours = budget_gpu_hours + coalesce(p_gpu_hours, 0), deadline = coalesce(p_deadline, deadline),
        stop_reason = null
    where study_id = p_study;
end $$;

-- Let nothing more begin in a study; what has begun is finished. The first reason stays.
create or replace function mammography.stop(p_study int, p_reason text) returns void language plpgsql as $$
begin
    perform 1 from studies where study_id = p_study for update;
    update mammography.study set stop_reason = coalesce(stop_reason, p_reason) where study_id = p_study;
end $$;
