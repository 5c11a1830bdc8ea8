-- What a finished trial shows: its artifacts and its note, among Optuna's system attributes of the trial.

-- Take down what was attached to a trial. Our artifacts have names of UUID's version 5; people's own, of version 4, stay.
create or replace function mammography.detach(p_trial int) returns void language sql as $$
    delete from trial_system_attributes
    where trial_id = p_trial and (key = 'mammography:note' or key like 'artifacts:________-____-5___-____-____________');
$$;

-- In place of what was attached to the trial before.
create or replace function mammography.attach_all(p_trial int, p_attributes jsonb) returns void language sql as $$
    select mammography.detach(p_trial);
    insert into trial_system_attributes (trial_id, key, value_json)
    select p_trial, key, value::text from jsonb_each(p_attributes);
$$;

-- Attach what an attempt that is about to finish its trial has to show, in place of what earlier attempts attached.
create or replace function mammography.attach(p_trial int, p_token uuid, p_attributes jsonb) returns boolean language plpgsql as $$
begin
    if not mammography.holds(p_trial, p_token) then
        return false;
    end if;
    perform mammography.attach_all(p_trial, p_attributes);
    return true;
end $$;

-- Put other words in place of the reason of a finished trial: workers of earlier versions wrote it as it was raised.
create or replace function mammography.reword(p_trial int, p_reason text) returns void language sql as $$
    update trial_user_attributes set value_json = to_json(p_reason)::text
    where trial_id = p_trial and key = 'reason'
      and exists (select from trials where trial_id = p_trial and state in ('COMPLETE', 'PRUNED', 'FAIL'));
$$;

-- Attach what a finished trial has to show, if nobody did. Returns whether it was done now.
create or replace function mammography.attach_late(p_trial int, p_attributes jsonb) returns boolean language plpgsql as $$
begin
    perform 1 from trials where trial_id = p_trial and state in ('COMPLETE', 'PRUNED', 'FAIL') for update;
    if not found or exists (select from trial_system_attributes where trial_id = p_trial and key = 'mammography:note') then
        return false;
    end if;
    perform mammography.attach_all(p_trial, p_attributes);
    return true;
end $$;
